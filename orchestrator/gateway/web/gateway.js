// Talks to the gateway that this page came from. The key lives in this tab's session and nowhere else.

const KEY = "moetune-key";
export const key = {
  get: () => sessionStorage.getItem(KEY) || "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

const PATIENCE = 10;

/** An answer that is no success: its status, what the gateway says, and the seconds until it may be asked again. */
export class Refused extends Error {
  constructor(status, message, seconds = 0) {
    super(message);
    this.status = status;
    this.seconds = seconds;
  }
}

async function send(path, options = {}) {
  const headers = { ...(options.body && { "Content-Type": "application/json" }) };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  const answer = await fetch(path, { ...options, headers, cache: "no-store" });
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => null);
  throw new Refused(answer.status, body?.error?.message || `HTTP ${answer.status}`, Number(answer.headers.get("Retry-After")));
}

/** What the gateway answers to a GET, as JSON. Waits where the key has asked too often, unless that takes long. */
export async function get(path) {
  for (;;) {
    try {
      return await (await send(path)).json();
    } catch (error) {
      if (error.status !== 429 || error.seconds > PATIENCE) throw error;
      await new Promise((done) => setTimeout(done, 1000 * error.seconds));
    }
  }
}

/** `get` for one path after the other: together they would all be refused at once. */
export async function getAll(paths, otherwise) {
  const found = [];
  for (const path of paths) found.push(await get(path).catch(otherwise));
  return found;
}

/** Whether an engine answers, and the registry. */
export async function readiness() {
  const answer = await fetch("/ready", { cache: "no-store" });
  return answer.json();
}

/** The events of a streamed chat, one after the other. */
export async function* chat(body, signal) {
  const answer = await send("/v1/chat/completions", {
    method: "POST",
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  for await (const line of lines(answer.body)) {
    const data = line.replace(/^data: /, "");
    if (!line || data === "[DONE]") continue;
    const event = JSON.parse(data);
    if (event.error) throw new Refused(500, event.error.message);
    yield event;
  }
}

async function* lines(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    yield* parts;
  }
}
