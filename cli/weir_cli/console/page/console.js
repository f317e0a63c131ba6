// The page: one stream of frames in, one picture out.
import { render } from "./vendor/preact.mjs";
import { Timelines } from "./charts.js";
import { Classes, Grid, Sums } from "./fleet.js";
import { moveMarks, placesOfMarks } from "./moves.js";
import { Replica } from "./replica.js";
import { Way } from "./way.js";
import { html } from "./words.js";

const HISTORY_S = 300;
const root = document.getElementById("console");
const seen = {
  isLive: false,
  service: new URLSearchParams(location.search).get("service") ?? "",
  replica: new URLSearchParams(location.search).get("replica") ?? "",
  fleet: null,
  one: null,
  rows: new Map(),
  moments: [],
  opened: null,
  reports: null,
};
let stream = null;

// A frame holds what differs from the one before.
const whole = (fleet) => {
  for (const name of fleet.left) seen.rows.delete(name);
  for (const row of fleet.replicas) seen.rows.set(row.name, row);
  const replicas = [...seen.rows.values()].sort((one, other) => (one.name < other.name ? -1 : 1));
  return { ...fleet, replicas, slots: fleet.slots ?? seen.fleet?.slots ?? {} };
};

const listen = () => {
  stream?.close();
  const query = new URLSearchParams({ service: seen.service, replica: seen.replica });
  stream = new EventSource(`/events?${query}`);
  stream.addEventListener("history", (event) => {
    seen.moments = JSON.parse(event.data);
    seen.rows.clear();
    seen.fleet = null;
  });
  stream.addEventListener("frame", (event) => {
    const frame = JSON.parse(event.data);
    seen.isLive = true;
    seen.fleet = whole(frame.fleet);
    seen.one = frame.replica;
    if (frame.moment && frame.moment.at_s !== seen.moments.at(-1)?.at_s) seen.moments.push(frame.moment);
    seen.moments = seen.moments.filter((each) => frame.fleet.at_s - each.at_s <= HISTORY_S);
    draw();
    const isOn = seen.reports?.some((report) => report.requests?.length);
    if (seen.opened && isOn && Date.now() - askedAt >= ASK_AGAIN_MS) ask(seen.opened.id);
  });
  stream.onerror = () => {
    seen.isLive = false;
    draw();
    // A browser tries again by itself, but not after an answer that is no stream: a login may be over.
    if (stream.readyState === EventSource.CLOSED) setTimeout(again, 3000);
  };
};

const again = async () => {
  const answer = await fetch("/console.js").catch(() => null);
  if (answer?.status === 401) location.assign("/login");
  else listen();
};

// What all sidecars of the service say of the request that is opened.
const ASK_AGAIN_MS = 3000;
let askedAt = 0;
const ask = async (id) => {
  askedAt = Date.now();
  const query = new URLSearchParams({ service: seen.fleet?.service ?? "", id });
  try {
    const answer = await fetch(`/request?${query}`);
    const found = answer.ok ? await answer.json() : null;
    if (seen.opened?.id === id) seen.reports = found;
  } catch {
    // The stream says that the connection is lost.
  }
  draw();
};

const show = (service, replica) => {
  seen.service = service;
  seen.replica = replica;
  const query = new URLSearchParams(Object.entries({ service, replica }).filter(([, name]) => name));
  history.replaceState(null, "", query.size ? `?${query}` : "/");
  seen.opened = null;
  seen.reports = null;
  listen();
};

let returnTo = null;
const open = (request) => {
  returnTo = document.activeElement;
  seen.opened = request;
  seen.reports = null;
  draw();
  ask(request.id);
  document.querySelector(".way")?.focus();
};

const close = () => {
  refocus(returnTo);
  seen.opened = null;
  seen.reports = null;
  draw();
};

// What had the focus may be elsewhere by now, as a request that went to the engine, or gone.
const refocus = (element) => {
  const id = element?.dataset.id;
  const moved = id && document.querySelector(`.mark[data-id="${CSS.escape(id)}"]`);
  const there = element?.isConnected ? element : moved || document.getElementById("one");
  there?.focus();
};

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && seen.opened) close();
});

const Services = ({ fleet }) =>
  fleet.services.length > 1 &&
  html`<label>service
    <select value=${fleet.service} onChange=${(event) => show(event.target.value, "")}>
      ${fleet.services.map((name) => html`<option key=${name} value=${name}>${name}</option>`)}
    </select></label>`;

const find = (event) => {
  event.preventDefault();
  const id = new FormData(event.target).get("id").trim();
  if (id) open({ id });
};

const Finder = () => html`
  <form class="finder" role="search" onSubmit=${find}>
    <label>request <input name="id" type="search" placeholder="x-request-id" maxlength="256" /></label>
    <button type="submit">Find</button>
  </form>`;

const Nothing = ({ fleet }) => html`
  <p class="empty">${
    seen.service && fleet.services.length
      ? html`No service ${seen.service} runs here. <button class="link" onClick=${() => show("", "")}>Show what runs</button>`
      : html`Nothing is served here. Start something with <code>weir up FILE</code>, or on a cluster
          with <code>kubectl apply -f FILE</code>`
  }</p>`;

const LogOut = () => html`
  <form method="post" action="/logout" onSubmit=${() => stream?.close()}><button type="submit">Log out</button></form>`;

const Page = () => {
  const { fleet, one, isLive } = seen;
  return html`
    <header class="top">
      <h1>weir${fleet?.service && html` <span>${fleet.service}</span>`}</h1>
      ${fleet && html`<${Services} fleet=${fleet} />`}
      ${fleet?.service && html`<${Finder} />`}
      <span class=${`link-state ${isLive ? "fine" : fleet ? "bad" : "pending"}`} role="status">
        <span aria-hidden="true">${isLive ? "●" : fleet ? "✕" : "○"}</span> ${isLive ? "live" : fleet ? "connection lost; trying again" : "connecting"}
      </span>
      ${root.dataset.logout === "yes" && html`<${LogOut} />`}
    </header>
    <main class=${isLive ? "" : "old"}>
      ${fleet?.trouble && html`<p class="trouble" role="alert">${fleet.trouble}</p>`}
      ${
        fleet?.service
          ? html`
            <${Sums} fleet=${fleet} />
            <${Grid} fleet=${fleet} chosen=${one.name} choose=${(name) => show(seen.service, name)} />
            <${Replica} replica=${one} fleet=${fleet} open=${open} opened=${seen.opened} />
            ${
              seen.opened &&
              html`<${Way} opened=${seen.opened} reports=${seen.reports} replica=${one} classes=${fleet.classes}
                close=${close} />`
            }
            <${Classes} fleet=${fleet} />
            <${Timelines} moments=${seen.moments} classes=${fleet.classes} />`
          : fleet && !fleet.trouble && html`<${Nothing} fleet=${fleet} />`
      }
    </main>`;
};

const draw = () => {
  const before = placesOfMarks();
  const focused = document.activeElement;
  render(html`<${Page} />`, root);
  if (focused && document.activeElement !== focused) refocus(focused);
  moveMarks(before);
};

draw();
listen();
