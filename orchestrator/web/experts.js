// Which experts an answer's tokens went to: shares of each layer, and the tokens in their colors.

import { el, hue, percent } from "/page/elements.js";

/** The routing of one answer, folded up; null where no adapter has answered. */
export function experts(routing) {
  if (!routing || !routing.layers.length) return null;
  const body = el("div");
  const fold = el("details", { className: "experts" }, el("summary", {}, summary(routing)), body);
  fold.addEventListener("toggle", () => fold.open && !body.firstChild && fill(body, routing));
  return fold;
}

function summary(routing) {
  const sums = [];
  for (const { load } of routing.layers) load.forEach((n, e) => (sums[e] = (sums[e] || 0) + n));
  const all = sums.reduce((a, b) => a + b, 0) || 1;
  const first = sums.map((n, e) => [n / all, e]).sort((a, b) => b[0] - a[0]).slice(0, 3);
  return `Experts: ${first.map(([share, e]) => `${e} (${percent(share)})`).join(", ")}`;
}

function fill(body, routing) {
  body.append(el("div", { className: "layers" }, routing.layers.map((layer) => bars(layer.layer, layer.load))));
  if (!routing.by_token?.length) return;
  const tokens = el("div", { className: "tokens" });
  const choose = el(
    "select",
    { ariaLabel: "Layer" },
    routing.layers.map((layer, index) => el("option", { value: String(index) }, layer.layer)),
  );
  const show = () => tokens.replaceChildren(...colored(routing, Number(choose.value)));
  choose.addEventListener("change", show);
  body.append(el("label", { className: "dim" }, "Each token's first expert in ", choose), tokens);
  show();
}

function colored(routing, place) {
  return routing.by_token.map((places, index) => {
    const { experts: chosen, gates } = places[place];
    const shown = chosen.map((e, n) => `${e}: ${percent(gates[n])}`).join("\n");
    const text = routing.texts?.[index] ?? "▪";
    return hue(el("span", { className: "token", title: shown || "none" }, text), chosen[0] ?? 0);
  });
}

/** One layer's load, a colored share for each expert. */
export function bars(name, load) {
  const all = load.reduce((a, b) => a + b, 0) || 1;
  const shares = load.map((n, e) => {
    const share = hue(el("div", { className: "share", title: `expert ${e}: ${percent(n / all, 1)}` }), e);
    share.style.width = percent(n / all, 2).replace(" ", "");
    if (n / all > 0.06) share.textContent = String(e);
    return share;
  });
  return el("div", { className: "layer" }, el("span", { className: "mono" }, name), el("div", { className: "shares" }, shares));
}
