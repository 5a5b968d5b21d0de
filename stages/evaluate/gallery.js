// The gallery: cards of pictures, ordered, searched and filtered; drawn a few at a time as the reader comes to them.
const settings = read("settings");
const [NAME, CAPTIONS, PEOPLE, CIDER, BLEU, FAILED, TIMES, LOOK] = [0, 1, 2, 3, 4, 5, 6, 7];
const rows = read("rows");
const search = place("search"), where = place("where"), order = place("order");
rows.forEach((row, number) => {
  row.number = number;
  row.model = row[CAPTIONS][0][0].toLowerCase();
  row.people = row[PEOPLE].join("\n").toLowerCase();
  row.words = row.model ? row.model.split(" ").length : 0;
});

// --- where the model looked: the picture, dark where it did not look ---
function look(row, image) {
  const bytes = Uint8Array.from(atob(row[LOOK]), (letter) => letter.charCodeAt(0));
  const side = settings.side, regions = side * side, words = row[CAPTIONS][0][0].split(" ");
  const canvas = element("canvas", { width: image.naturalWidth * 2, height: image.naturalHeight * 2, role: "img" });
  const shade = element("canvas", { width: side, height: side });
  const draw = (word) => {
    const paint = shade.getContext("2d"), pixels = paint.createImageData(side, side);
    for (let at = 0; at < regions; at++) pixels.data[4 * at + 3] = 0.82 * (255 - bytes[word * regions + at]);
    paint.putImageData(pixels, 0, 0);
    const onto = canvas.getContext("2d"), { width, height } = canvas, square = Math.min(width, height);
    onto.imageSmoothingQuality = "high";
    onto.drawImage(image, 0, 0, width, height);
    if (settings.cropped) {
      onto.fillStyle = "rgb(0 0 0 / 82%)";
      const [x, y] = [(width - square) / 2, (height - square) / 2];
      for (const box of [[0, 0, x, height], [width - x, 0, x, height], [x, 0, square, y], [x, height - y, square, y]]) onto.fillRect(...box);
      onto.drawImage(shade, x, y, square, square);
    } else onto.drawImage(shade, 0, 0, width, height);
    canvas.setAttribute("aria-label", `where the model looked for “${words[word]}”`);
    buttons.forEach((button, at) => button.setAttribute("aria-pressed", at === word));
  };
  const buttons = words.map((word, at) => {
    const button = element("button", { type: "button", "aria-pressed": "false" }, word);
    button.addEventListener("click", () => draw(at));
    button.addEventListener("focus", () => draw(at));
    button.addEventListener("pointerenter", () => draw(at));
    button.addEventListener("keydown", (event) => {
      const next = at + ({ ArrowRight: 1, ArrowLeft: -1 })[event.key];
      if (buttons[next]) { buttons[next].focus(); event.preventDefault(); }
    });
    return button;
  });
  draw(0);
  return [canvas, element("div", { className: "words" }, ...buttons)];
}

function card(row) {
  const [best, ...others] = row[CAPTIONS];
  const hit = searched(search.value), none = () => false;
  const image = picture(row.number, best[0]);
  const view = element("div", { className: "view" }, image);
  const number = (name, value, more) => element("span", {}, element("b", {}, value), ` ${name}`, more ?? "");
  const said = element("div", { className: "said" },
    element("p", { className: "caption" }, ...marked(best[0], where.value === "people" ? none : hit)),
    element("p", { className: "figures" }, number("CIDEr-D", row[CIDER].toFixed(1)), number("BLEU-4", row[BLEU].toFixed(1)),
      number("sure", `${best[1].toFixed(0)} %`)));
  if (row[FAILED].length)
    said.append(element("p", { className: "chips" }, ...row[FAILED].map((name) =>
      element("span", { className: "chip" }, settings.failures[name] + (name === "stock" ? ` (${row[TIMES]} times)` : "")))));
  said.append(element("ul", {}, ...row[PEOPLE].map((text) => element("li", {}, ...marked(text, where.value === "model" ? none : hit)))));
  if (others.length)
    said.append(element("details", {}, element("summary", {}, `${others.length} more ${others.length > 1 ? "captions" : "caption"} of the model`),
      element("ol", { start: 2 }, ...others.map(([text, sure]) => element("li", {}, text, " ", element("small", {}, `${sure.toFixed(0)} %`))))));
  if (row[LOOK]) {
    const opened = element("details", {}, element("summary", {}, "where it looked, word by word"));
    opened.addEventListener("toggle", () => {
      if (opened.open && image.naturalWidth) {
        const [canvas, words] = look(row, image);
        view.replaceChildren(canvas);
        opened.append(words);
      } else {
        view.replaceChildren(image);
        opened.querySelector(".words")?.remove();
      }
    });
    said.append(opened);
  }
  said.append(element("small", { className: "mono" }, row[NAME]));
  return element("li", { className: "card" }, view, said);
}

// --- which, and in what order ---
const by = {
  split: (one, other) => one.number - other.number,
  best: (one, other) => other[CIDER] - one[CIDER] || other[BLEU] - one[BLEU],
  worst: (one, other) => one[CIDER] - other[CIDER] || one[BLEU] - other[BLEU],
  longest: (one, other) => other.words - one.words,
  surprising: (one, other) => one[CAPTIONS][0][1] - other[CAPTIONS][0][1],
};
const chips = [...document.querySelectorAll("[data-failure]")];
const list = growing(rows, card, 48, true);
function show() {
  const begin = beginnings(search.value);
  const failures = chips.filter((chip) => chip.getAttribute("aria-pressed") === "true").map((chip) => chip.dataset.failure);
  const text = (row) => ({ model: row.model, people: row.people, both: `${row.model}\n${row.people}` })[where.value];
  const found = rows.filter((row) => failures.every((name) => row[FAILED].includes(name)) && begin.every((word) => word.test(text(row))));
  list(found.sort((one, other) => by[order.value](one, other) || one.number - other.number));
}
let waiting;
search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(show, 120); });
for (const control of [where, order]) control.addEventListener("change", show);
for (const chip of chips)
  chip.addEventListener("click", () => {
    chip.setAttribute("aria-pressed", chip.getAttribute("aria-pressed") !== "true");
    show();
  });
show();
