// Which experts an answer's tokens went to: the tokens in their experts' colors, then the layers' shares.
// Layers count their experts by themselves, so nothing here adds up over layers.

import { el, percent } from "/page/elements.js";

const COLORS = 8; // as many as style.css has

/** The routing of one answer; null where no adapter has answered. */
export function experts(routing, promptTokens) {
  if (!routing || !routing.layers.length) return null;
  const views = routing.by_token?.length ? tokens(routing, promptTokens) : [];
  const layers = el("div", { className: "layers" }, routing.layers.map((layer) => bars(layer.layer, layer.load)));
  const folded = el("details", {}, el("summary", {}, "Prompt's tokens, and every layer's load"), views.slice(1), layers);
  return el("div", { className: "experts" }, views.slice(0, 1), folded);
}

/** The answer's tokens with their layer and legend, and the prompt's tokens. */
function tokens(routing, promptTokens) {
  const answer = el("div", { className: "tokens answer" });
  const prompt = el("div", { className: "tokens prompt" });
  const key = el("div", { className: "key" });
  const choose = el(
    "select",
    { ariaLabel: "Layer" },
    routing.layers.map((layer, index) => el("option", { value: String(index) }, layer.layer)),
  );
  const show = () => {
    const place = Number(choose.value);
    const classes = colors(routing.layers[place].load);
    const shown = colored(routing, place, classes, promptTokens);
    prompt.replaceChildren(...shown.slice(0, promptTokens));
    answer.replaceChildren(...shown.slice(promptTokens));
    key.replaceChildren(...legend(routing.layers[place].load, classes));
  };
  choose.addEventListener("change", show);
  show();
  const label = el("label", { className: "dim" }, "Each token's first expert in ", choose);
  return [el("div", {}, label, answer, key), prompt];
}

function colored(routing, place, classes, promptTokens) {
  let before = null;
  return routing.by_token.map((places, index) => {
    const { experts: chosen, gates } = places[place];
    const first = chosen[0] ?? null;
    const title = chosen.map((e, n) => `expert ${e}: gate ${gates[n].toFixed(2)}`).join("\n") || "no expert had room";
    const begins = first !== null && (first !== before || index === promptTokens);
    before = first;
    const className = `token ${first === null ? "void" : classes[first]}`;
    const number = begins ? el("b", {}, String(first)) : null;
    return el("span", { className, title: `${routing.layers[place].layer}\n${title}` }, number, routing.texts?.[index] ?? "▪");
  });
}

function legend(load, classes) {
  const all = load.reduce((a, b) => a + b, 0) || 1;
  return load.map((n, e) => el("span", {}, el("i", { className: classes[e] }), `expert ${e} ${percent(n / all)}`));
}

/** A class for each expert of a layer. Where there are more than colors the busiest have them: no color means two. */
function colors(load) {
  const busiest = load.map((n, e) => e).sort((a, b) => load[b] - load[a]).slice(0, COLORS).sort((a, b) => a - b);
  return load.map((n, e) => (busiest.includes(e) ? `e${busiest.indexOf(e)}` : "other"));
}

/** One layer's load, a colored share for each expert. */
export function bars(name, load) {
  const all = load.reduce((a, b) => a + b, 0) || 1;
  const classes = colors(load);
  const shares = load.map((n, e) => {
    const share = el("div", { className: `share ${classes[e]}`, title: `expert ${e}: ${percent(n / all, 1)}` });
    share.style.width = percent(n / all, 2).replace(" ", "");
    if (n / all > 0.06) share.textContent = String(e);
    return share;
  });
  return el("div", { className: "layer" }, el("span", { className: "mono" }, name), el("div", { className: "shares" }, shares));
}
