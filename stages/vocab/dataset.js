// The dataset report: cards of pictures, searched by word; lists of words that start a search.
const pictures = read("sample");
const search = place("search"), split = place("split");
pictures.forEach((each, number) => { each.number = number; each.text = each.captions.join("\n").toLowerCase(); });

function card(each) {
  const unknown = new Set(each.unknown), hit = searched(search.value);
  const wrap = (word) => {
    const strange = unknown.has(word.toLowerCase()) ? element("u", { title: "not in the vocabulary" }, word) : word;
    return hit(word.toLowerCase()) ? element("mark", {}, strange) : strange;
  };
  const said = (caption) => element("li", {}, ...marked(caption, (word) => hit(word) || unknown.has(word), wrap));
  const size = each.size[0] ? `, ${each.size.join(" x ")}` : "";
  return element("li", { className: "card" },
    element("div", { className: "view" }, picture(each.number, each.captions[0])),
    element("div", { className: "said" },
      element("ul", {}, ...each.captions.map(said)),
      element("small", {}, element("span", { className: "mono" }, each.name), ` ${each.split}${size}`)));
}
const show = (() => {
  const list = growing(pictures, card, 24, false);
  return () => {
    const begin = beginnings(search.value);
    list(pictures.filter((each) => (!split.value || each.split === split.value) && begin.every((word) => word.test(each.text))));
  };
})();
search.addEventListener("input", show);
split.addEventListener("change", show);
show();

const SMALL = new Set(("a an the in on of is are and with at to it its his her he she they their there this that by for from as " +
  "up out into while one two some who be has have was were or over next near down off other another").split(" "));
function frequent(name) {
  const plain = place("plain").checked;
  const rows = read(`${name}-data`).filter(([words]) => !plain || !words.split(" ").some((word) => SMALL.has(word))).slice(0, 25);
  const top = rows.length ? rows[0][1] : 1;
  place(`${name}-list`).replaceChildren(...rows.flatMap(([words, count]) => {
    const button = element("button", { className: "plain", title: "look for it among the pictures" }, words);
    button.addEventListener("click", () => { search.value = words; show(); place("pictures").scrollIntoView(); search.focus({ preventScroll: true }); });
    const bar = element("b");
    bar.style.width = `${100 * count / top}%`;
    return [element("span", {}, button), bar, element("em", {}, count.toLocaleString("en"))];
  }));
}
const lists = () => ["words", "pairs"].forEach(frequent);
place("plain").addEventListener("change", lists);
lists();
