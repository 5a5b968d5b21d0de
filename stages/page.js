"use strict";
// What every page's script begins with. What people or models wrote goes in as text only, by `element`.

// A new element; names that are no properties of it become attributes.
const element = (name, properties = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties))
    if (key in made) made[key] = value; else made.setAttribute(key, value);
  made.append(...children);
  return made;
};
// What a block of data holds.
const read = (name) => JSON.parse(document.getElementById(name).textContent);
const place = (name) => document.getElementById(name);

// --- words: of a text, lower case; what a search looks for; a text with some of its words marked ---
const WORD = /[\p{L}\p{N}][\p{L}\p{N}'’-]*/gu;
const words = (text) => text.toLowerCase().match(WORD) ?? [];
const beginnings = (search) => words(search).map((word) => new RegExp(`(?<![\\p{L}\\p{N}])${word}`, "u"));
function marked(text, hit, wrap = (word) => element("mark", {}, word)) {
  const parts = [];
  let last = 0;
  for (const found of text.matchAll(WORD))
    if (hit(found[0].toLowerCase())) {
      parts.push(text.slice(last, found.index), wrap(found[0]));
      last = found.index + found[0].length;
    }
  return [...parts, text.slice(last)];
}
// Is it the beginning of a word that is searched for?
const searched = (search) => {
  const wanted = words(search);
  return (word) => wanted.some((each) => word.startsWith(each));
};

// --- pictures: blocks of base64 at the end of a page, which may not have been read yet ---
const BLOCK = 100;
const blocks = new Map();
function source(number) {
  const which = Math.floor(number / BLOCK), script = place(`block-${which}`);
  if (!blocks.has(which)) {
    if (document.readyState === "loading" && !script?.nextElementSibling) return null;
    blocks.set(which, script ? script.textContent.split("\n") : []);
  }
  const line = blocks.get(which)[number % BLOCK];
  return line ? `data:image/jpeg;base64,${line}` : "";
}
// The picture of a number, in time; or a note where it cannot be shown.
function picture(number, alt) {
  const image = element("img", { alt, decoding: "async" });
  const fill = () => {
    const found = source(number);
    if (found === null) setTimeout(fill, 60);
    else if (found) image.src = found;
    else image.replaceWith(element("p", { className: "note" }, "this picture cannot be shown"));
  };
  setTimeout(fill);
  return image;
}

// --- a list of cards that grows by a button and, if eager, as the reader comes near it; returns what shows other rows ---
function growing(all, card, step, eager) {
  const cards = place("cards"), more = place("more");
  let found = [], shown = 0;
  const grow = () => {
    cards.append(...found.slice(shown, shown + step).map(card));
    shown = Math.min(shown + step, found.length);
    more.hidden = shown >= found.length;
  };
  more.addEventListener("click", grow);
  if (eager) new IntersectionObserver(([seen]) => { if (seen.isIntersecting && cards.firstChild) grow(); }, { rootMargin: "1200px" }).observe(more);
  return (rows) => {
    found = rows;
    place("count").textContent = `${rows.length.toLocaleString("en")} of ${all.length.toLocaleString("en")} pictures`;
    cards.replaceChildren();
    shown = 0;
    grow();
  };
}
