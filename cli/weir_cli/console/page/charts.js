// Time as lines; each chart says a value of each line in words, too.
import { count, html, seconds, Shape, classStyle, sum } from "./words.js";

const WIDTH = 320;
const HEIGHT = 96;
const LEFT = 46;
const BOTTOM = 16;
const WINDOW_S = 300;
// Readings that are missing for a longer part of the chart break the line.
const GAP = 1 / 20;

const ceiling = (value) => {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((step) => step * power).find((step) => step >= value);
};

// Half a request is no number of requests.
const tick = (value, format) => (format === count && value < 10 && !Number.isInteger(value) ? "" : format(value));

// What the charts of a live service are of; a value of a line is told by its newest.
const live = (moments) => {
  const until_s = moments.at(-1)?.at_s ?? 0;
  return {
    title: "Last five minutes",
    from_s: until_s - WINDOW_S,
    until_s,
    ends: ["5 min ago", "now"],
    word: "now",
    told: (values) => values.at(-1),
  };
};

const path = (points, gap_s) => {
  let last = null;
  return points
    .map(({ x, y, at }) => {
      const begins = last === null || at - last > gap_s;
      last = at;
      return `${begins ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}`;
    })
    .join("");
};

export const Chart = ({ title, note, moments, lines, format, span, limits = [] }) => {
  const { from_s, until_s } = span;
  const values = lines.flatMap((line) => moments.map(line.value).filter((v) => v != null));
  const top = ceiling(Math.max(0, ...values, ...limits.map((limit) => limit.value)));
  const x = (at) => LEFT + (WIDTH - LEFT) * ((at - from_s) / (until_s - from_s));
  const y = (value) => 4 + (HEIGHT - BOTTOM - 4) * (1 - value / top);
  const value = (line) => format(span.told(moments.map(line.value)));
  const told = lines.map((line) => `${line.name || span.word} ${value(line)}`).join(", ");
  return html`
    <figure class="chart">
      <figcaption><b>${title}</b><span class="quiet">${note}</span></figcaption>
      <svg viewBox=${`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label=${`${title}: ${told}`}>
        ${[0, 0.5, 1].map(
          (part) => html`
            <line class="grid" x1=${LEFT} x2=${WIDTH} y1=${y(top * part)} y2=${y(top * part)} />
            <text x=${LEFT - 5} y=${y(top * part) + 3} text-anchor="end">${tick(top * part, format)}</text>`,
        )}
        <text x=${LEFT} y=${HEIGHT - 3}>${span.ends[0]}</text>
        <text x=${WIDTH} y=${HEIGHT - 3} text-anchor="end">${span.ends[1]}</text>
        ${limits.map(
          (limit) => html`
            <line class=${`limit c${limit.style}`} x1=${LEFT} x2=${WIDTH} y1=${y(limit.value)}
              y2=${y(limit.value)} />`,
        )}
        ${lines.map((line) => {
          const points = moments
            .map((moment) => ({ at: moment.at_s, value: line.value(moment) }))
            .filter((point) => point.value != null && point.at >= from_s)
            .map((point) => ({ at: point.at, x: x(point.at), y: y(point.value) }));
          const end = points.at(-1);
          return html`
            <path class=${`line c${line.style}`} d=${path(points, GAP * (until_s - from_s))} />
            ${end && html`<circle class=${`end c${line.style}`} cx=${end.x} cy=${end.y} r="2.5" />`}`;
        })}
      </svg>
      <ul class="legend">
        ${lines.map(
          (line) => html`
            <li>${line.name && html`<${Shape} style=${line.style} />${line.name} `}
              <b>${value(line)}</b>
              ${line.limit != null && html`<span class="quiet"> of ${format(line.limit)}</span>`}
            </li>`,
        )}
      </ul>
    </figure>`;
};

export const Timelines = ({ moments, classes, span = live(moments), children }) => {
  const byClass = (field, missing) =>
    classes.map((each) => ({
      name: each.name,
      style: classStyle(classes, each.name),
      value: (moment) => moment[field][each.name] ?? missing,
    }));
  const targets = classes.filter((each) => each.ttft_target_s != null);
  const shed = span.told(moments.map((moment) => sum(moment.rejected))) ?? 0;
  return html`
    <section aria-label=${span.title}>
      <h2>${span.title}</h2>
      <div class="charts">
        <${Chart} title="Waiting" note="requests, by class" span=${span} moments=${moments} format=${count}
          lines=${byClass("waiting", 0)} />
        <${Chart} title="TTFT p99" note="of a minute; dashed: target"
          span=${span} moments=${moments} format=${seconds}
          lines=${byClass("ttft_p99_s", null).map((line) => ({
            ...line,
            limit: classes.find((each) => each.name === line.name).ttft_target_s,
          }))}
          limits=${targets
            .filter((each) => moments.some((moment) => moment.ttft_p99_s[each.name] != null))
            .map((each) => ({ value: each.ttft_target_s, style: classStyle(classes, each.name) }))} />
        <${Chart} title="Rejected" note=${`in a minute; ${span.word} ${count(shed)}`}
          span=${span} moments=${moments} format=${count} lines=${byClass("rejected", 0)} />
        <${Chart} title="In the engines" note="requests" span=${span} moments=${moments} format=${count}
          lines=${[{ name: "", style: "n", value: (moment) => moment.at_engine }]} />
        <${Chart} title="Tokens a second" note="output of all engines" span=${span}
          moments=${moments} format=${count}
          lines=${[{ name: "", style: "n", value: (moment) => moment.output_tokens_s }]} />
        ${children}
      </div>
    </section>`;
};
