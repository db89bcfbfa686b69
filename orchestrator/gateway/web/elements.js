// Elements by hand. Text is only ever set as text: nothing from a model or a person becomes markup.

export const $ = (id) => document.getElementById(id);

/** An element with properties, and children that are elements or text. */
export function el(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

/** A row of a list of terms; nothing where there is no value. */
export const fact = (term, value) =>
  value === null || value === undefined || value === "" ? [] : [el("dt", {}, term), el("dd", {}, value)];

export const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;
export const time = (text) => (text ? new Date(text).toLocaleString() : "");
export const empty = (text) => el("p", { className: "empty" }, text);
