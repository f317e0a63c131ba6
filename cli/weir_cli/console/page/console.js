// The page: one stream of frames in, one picture out.
import { render } from "./vendor/preact.mjs";
import { Timelines } from "./charts.js";
import { Classes, Grid, Sums } from "./fleet.js";
import { moveMarks, placesOfMarks } from "./moves.js";
import { Replica } from "./replica.js";
import { html } from "./words.js";

const HISTORY_S = 300;
const root = document.getElementById("console");
const seen = {
  isLive: false,
  service: new URLSearchParams(location.search).get("service") ?? "",
  replica: new URLSearchParams(location.search).get("replica") ?? "",
  fleet: null,
  one: null,
  moments: [],
  opened: null,
};
let stream = null;

const listen = () => {
  stream?.close();
  const query = new URLSearchParams({ service: seen.service, replica: seen.replica });
  stream = new EventSource(`/events?${query}`);
  stream.addEventListener("history", (event) => {
    seen.moments = JSON.parse(event.data);
  });
  stream.addEventListener("frame", (event) => {
    const frame = JSON.parse(event.data);
    seen.isLive = true;
    seen.fleet = frame.fleet;
    seen.one = frame.replica;
    if (frame.moment && frame.moment.at_s !== seen.moments.at(-1)?.at_s) seen.moments.push(frame.moment);
    seen.moments = seen.moments.filter((each) => frame.fleet.at_s - each.at_s <= HISTORY_S);
    draw();
  });
  stream.onerror = () => {
    seen.isLive = false;
    draw();
    // A browser tries again by itself, but not after an answer that is no stream.
    if (stream.readyState === EventSource.CLOSED) setTimeout(listen, 3000);
  };
};

const show = (service, replica) => {
  seen.service = service;
  seen.replica = replica;
  const query = new URLSearchParams(Object.entries({ service, replica }).filter(([, name]) => name));
  history.replaceState(null, "", query.size ? `?${query}` : "/");
  seen.opened = null;
  listen();
};

let returnTo = null;
const open = (request) => {
  returnTo = document.activeElement;
  seen.opened = request;
  draw();
  document.querySelector(".way")?.focus();
};

const close = () => {
  seen.opened = null;
  draw();
  if (returnTo?.isConnected) returnTo.focus();
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

const Nothing = ({ fleet }) => html`
  <p class="empty">${
    seen.service && fleet.services.length
      ? html`No service ${seen.service} runs here. <button class="link" onClick=${() => show("", "")}>Show what runs</button>`
      : html`Nothing runs on this machine. Start something with: <code>weir up FILE</code>`
  }</p>`;

const Page = () => {
  const { fleet, one, isLive } = seen;
  return html`
    <header class="top">
      <h1>weir${fleet?.service && html` <span>${fleet.service}</span>`}</h1>
      ${fleet && html`<${Services} fleet=${fleet} />`}
      <span class=${`link-state ${isLive ? "fine" : "bad"}`} role="status">
        <span aria-hidden="true">${isLive ? "●" : "✕"}</span> ${isLive ? "live" : fleet ? "connection lost; trying again" : "connecting"}
      </span>
    </header>
    <main class=${isLive ? "" : "old"}>
      ${
        fleet?.service
          ? html`
            <${Sums} fleet=${fleet} />
            <${Grid} fleet=${fleet} chosen=${one.name} choose=${(name) => show(seen.service, name)} />
            <${Replica} replica=${one} fleet=${fleet} open=${open} opened=${seen.opened} close=${close} />
            <${Classes} fleet=${fleet} />
            <${Timelines} moments=${seen.moments} classes=${fleet.classes} />`
          : fleet && html`<${Nothing} fleet=${fleet} />`
      }
    </main>`;
};

const draw = () => {
  const before = placesOfMarks();
  render(html`<${Page} />`, root);
  moveMarks(before);
};

draw();
listen();
