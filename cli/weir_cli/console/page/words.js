// Numbers, names and marks as they are shown everywhere.
import { h } from "./vendor/preact.mjs";
import htm from "./vendor/htm.mjs";

export const html = htm.bind(h);
export const UNKNOWN = "–";

export const seconds = (value) => {
  if (value == null) return UNKNOWN;
  const size = Math.abs(value);
  if (size < 1) return `${Math.round(1000 * value)} ms`;
  return size < 100 ? `${value.toFixed(1)} s` : `${Math.round(value)} s`;
};

export const count = (value) => {
  if (value == null) return UNKNOWN;
  if (value >= 1e6) return `${(value / 1e6).toFixed(1)}M`;
  return value >= 1e4 ? `${(value / 1e3).toFixed(1)}k` : `${Math.round(value)}`;
};

export const share = (value) => (value == null ? UNKNOWN : `${Math.round(100 * value)} %`);

// Clients may use an id twice; a sidecar of an earlier version tells the id alone.
export const keyOf = (request) => request.key ?? request.id;

export const sum = (counts) => Object.values(counts ?? {}).reduce((all, one) => all + one, 0);

const REASONS = {
  ok: "served",
  client_error: "the request was refused as it is: it has to change",
  client_gone: "the client left",
  client_slow: "the client did not send its body, or take its answer, in time",
  engine_error: "the engine failed, or its answer broke off",
  engine_timeout: "the engine did not answer in time",
  rejected_saturated: "shed: it could not be on time behind what waits",
  rejected_ttl_expired: "shed: it waited as long as its class may",
  rejected_queue_full: "shed: the pool holds as many requests as it may",
  rejected_memory_full: "shed: waiting requests take as much memory as they may",
  rejected_tenant_limit: "refused: its tenant has reached a limit",
  rejected_no_endpoints: "refused: there is no engine to serve it",
  rejected_shutting_down: "refused: the replica drains",
  cut_by_shutdown: "cut: it still ran when the drain's time was over",
  internal_error: "a fault of the sidecar; its log says more",
};
export const reason = (outcome) => REASONS[outcome] ?? outcome;

const BLOCKS = {
  engine: "there is no engine now",
  slot: "all slots of the batch are taken",
  prefill: "the engine has enough prompts to compute",
  kv: "the KV cache has no room for it",
  decodes: "one more would make running answers too slow",
};
const AT_GATEWAY = { engine: "no replica takes requests now" };
export const block = (name, isGateway = false) => (isGateway && AT_GATEWAY[name]) || (BLOCKS[name] ?? name);

// A class has a colour and a shape, so that neither has to be told from the other by colour alone.
const SHAPES = [
  "M8 1.5a6.5 6.5 0 1 0 0 13a6.5 6.5 0 1 0 0-13z",
  "M2 2h12v12H2z",
  "M8 1l7 13.5H1z",
  "M8 .5L15.5 8L8 15.5L.5 8z",
  "M8 15L1 1.5h14z",
  "M5.5 1h5v4.5H15v5h-4.5V15h-5v-4.5H1v-5h4.5z",
];

export const classStyle = (classes, name) => {
  const place = classes.findIndex((each) => each.name === name);
  return place < 0 ? SHAPES.length - 1 : place % SHAPES.length;
};

export const Shape = ({ style, hollow = false }) => html`
  <svg class=${`shape c${style}${hollow ? " hollow" : ""}`} viewBox="0 0 16 16" aria-hidden="true">
    <path d=${SHAPES[style]} />
  </svg>`;

export const ClassName = ({ classes, name }) => html`
  <span class="class-name"><${Shape} style=${classStyle(classes, name)} />${name}</span>`;

// A link that is seen while it has the focus, before more buttons than anyone would step through.
const STEPS = 6;
export const Skip = ({ to, what, of }) =>
  of.length > STEPS && html`<a class="skip" href=${`#${to}`}>Skip ${what}</a>`;
