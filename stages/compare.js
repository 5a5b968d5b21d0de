// Two captions of every picture, side by side.
const [NAME, A, B, PEOPLE] = [0, 1, 2, 3];
const rows = read("rows");
rows.forEach((row, number) => {
  row.number = number;
  row.text = [row[A][0], row[B][0]].join("\n").toLowerCase();
  row.apart = row[A][1] - row[B][1];
});
const search = place("search"), order = place("order"), changed = place("changed");

// A caption with the words marked that the other one does not have.
function only(caption, other) {
  const known = new Set(words(other));
  return marked(caption, (word) => !known.has(word));
}
function card(row) {
  const said = (name, [caption, cider], other) => element("div", {},
    element("p", { className: "caption" }, element("b", {}, `${name} `), ...only(caption, other)),
    element("p", { className: "figures" }, element("span", {}, element("b", {}, cider.toFixed(1)), " CIDEr-D")));
  const apart = `${row.apart > 0 ? "+" : ""}${row.apart.toFixed(1)}`;
  return element("li", { className: "card" },
    element("div", { className: "view" }, picture(row.number, row[A][0])),
    element("div", { className: "said" }, said("A", row[A], row[B][0]), said("B", row[B], row[A][0]),
      element("p", { className: "figures" }, element("span", {}, "A less B ", element("b", { className: row.apart < 0 ? "bad" : "good" }, apart))),
      element("details", {}, element("summary", {}, "what people say"),
        element("ul", {}, ...row[PEOPLE].map((text) => element("li", {}, text)))),
      element("small", { className: "mono" }, row[NAME])));
}
const by = {
  differ: (one, other) => Math.abs(other.apart) - Math.abs(one.apart),
  a: (one, other) => other.apart - one.apart,
  b: (one, other) => one.apart - other.apart,
  split: () => 0,
};
const list = growing(rows, card, 48, true);
function show() {
  const begin = beginnings(search.value);
  const found = rows.filter((row) => (!changed.checked || row[A][0] !== row[B][0]) && begin.every((word) => word.test(row.text)));
  list(found.sort((one, other) => by[order.value](one, other) || one.number - other.number));
}
search.addEventListener("input", show);
for (const control of [order, changed]) control.addEventListener("change", show);
show();
