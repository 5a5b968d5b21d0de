// The dataset report: cards of pictures, searched by word; lists of words that start a search.
const pictures = read("sample");
const search = place("search"), split = place("split"), cards = place("cards"), more = place("more");
const STEP = 24;
const WORD = /[\p{L}\p{N}][\p{L}\p{N}'’-]*/gu;
for (const picture of pictures) picture.text = picture.captions.join("\n").toLowerCase();

// A caption with unknown words underlined and searched ones marked.
function marked(caption, unknown, wanted) {
  const parts = [];
  let last = 0;
  for (const found of caption.matchAll(WORD)) {
    const low = found[0].toLowerCase();
    const hit = wanted.some((word) => low.startsWith(word)), strange = unknown.has(low);
    if (!hit && !strange) continue;
    parts.push(caption.slice(last, found.index));
    let part = document.createTextNode(found[0]);
    if (strange) part = element("u", { title: "not in the vocabulary" }, part);
    if (hit) part = element("mark", {}, part);
    parts.push(part);
    last = found.index + found[0].length;
  }
  return [...parts, caption.slice(last)];
}

function card(picture, wanted) {
  const unknown = new Set(picture.unknown);
  const image = picture.jpeg
    ? element("img", { alt: picture.captions[0], loading: "lazy", decoding: "async", src: `data:image/jpeg;base64,${picture.jpeg}` })
    : element("p", { className: "note" }, "this picture cannot be shown");
  const size = picture.size[0] ? `, ${picture.size.join(" x ")}` : "";
  return element("li", { className: "card" },
    element("div", { className: "view" }, image),
    element("div", { className: "said" },
      element("ul", {}, ...picture.captions.map((caption) => element("li", {}, ...marked(caption, unknown, wanted)))),
      element("small", {}, element("span", { className: "mono" }, picture.name), ` ${picture.split}${size}`)));
}

// Does a caption have a word that begins so?
const has = (text, word) => {
  for (let at = text.indexOf(word); at >= 0; at = text.indexOf(word, at + 1))
    if (at === 0 || !/[\p{L}\p{N}]/u.test(text[at - 1])) return true;
  return false;
};

let found = [], wanted = [], shown = 0;
function grow() {
  cards.append(...found.slice(shown, shown + STEP).map((picture) => card(picture, wanted)));
  shown = Math.min(shown + STEP, found.length);
  more.hidden = shown >= found.length;
}
function show() {
  wanted = search.value.toLowerCase().match(WORD) ?? [];
  found = pictures.filter((each) => (!split.value || each.split === split.value) && wanted.every((word) => has(each.text, word)));
  place("count").textContent = `${found.length.toLocaleString("en")} of ${pictures.length.toLocaleString("en")} pictures`;
  cards.replaceChildren();
  shown = 0;
  grow();
}
search.addEventListener("input", show);
split.addEventListener("change", show);
more.addEventListener("click", grow);
show();

const SMALL = new Set(("a an the in on of is are and with at to it its his her he she they their there this that by for from as " +
  "up out into while one two some who be has have was were or over next near down off other another").split(" "));
function list(name) {
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
const lists = () => ["words", "pairs"].forEach(list);
place("plain").addEventListener("change", lists);
lists();
