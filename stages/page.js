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
