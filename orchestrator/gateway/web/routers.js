// How the routers of each version are: load of the experts, and drift from training.

import { $, el, empty, fact, percent } from "/page/elements.js";
import { bars } from "/page/experts.js";
import { get, getAll } from "/page/gateway.js";

const MOODS = { steady: "good", suspect: "warn", drifted: "bad", unknown: "" };

/** Show the router health of every name. */
export async function show() {
  const { rollouts } = await get("/moetune/v1/rollouts");
  const healths = await getAll(rollouts.map(({ name }) => `/moetune/v1/health/${encodeURIComponent(name)}`), nothing);
  const cards = healths.flatMap((health) => (health?.versions || []).map((version) => card(health.name, version)));
  $("routers").replaceChildren(
    cards.length ? el("div", { className: "cards" }, cards) : empty("No adapter has answered yet."),
  );
}

function nothing(error) {
  if (error.status === 404) return null;
  throw error;
}

function card(name, version) {
  const { drift } = version;
  return el(
    "article",
    { className: "card" },
    el("div", { className: "head" }, el("h2", {}, `${name}@${version.version}`),
      el("span", { className: `pill ${MOODS[drift.state]}` }, drift.state)),
    el("dl", {},
      fact("requests", `${version.requests} latest, ${version.tokens} tokens`),
      fact("drift", drift.why),
      fact("reference", drift.reference)),
    el("div", {}, version.layers.map((layer) => bars(layer.layer, layer.load))),
    el("div", { className: "wide" }, figures(version.layers)),
  );
}

function figures(layers) {
  const head = el("tr", {}, ["layer", "evenness", "variation", "doubt", "margin", "dead"].map((text) => el("th", {}, text)));
  const rows = layers.map((layer) =>
    el("tr", {}, [layer.layer, percent(layer.entropy), layer.cv.toFixed(2), percent(layer.doubt),
      percent(layer.margin), layer.dead.join(", ") || "–"].map((text) => el("td", {}, text))));
  return el("table", {}, el("thead", {}, head), el("tbody", {}, rows));
}
