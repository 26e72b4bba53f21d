"use strict";
// Builds the page from the document of `analysis/report.py`. Text from the results is only ever set as text.
(() => {
const report = JSON.parse(document.getElementById("data").textContent);
const {labels, tasks} = report;
const state = {hidden: new Set(), kind: "final", band: "pointwise", logX: false, logY: false, runs: true};
const byId = (id) => document.getElementById(id);

// --- Elements and numbers --------------------------------------------------------------------------------------------

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") {
      if (value) node.classList.add(...value.split(" "));
    } else if (name === "colour") {
      node.classList.add("of-label");
      node.style.setProperty("--base", value);
    } else if (value === true) {
      node.setAttribute(name, "");
    } else if (value !== false && value !== null && value !== undefined) {
      node.setAttribute(name, value);
    }
  }
  node.append(...children);
  return node;
}
const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const there = (value) => value !== null && value !== undefined;
const MISSING = "–";
const number = (value, decimals) =>
  there(value) ? value.toFixed(decimals).replace(/^-(0(?:\.0*)?)$/, "$1").replace("-", "−") : MISSING;
const grouped = (count) => count.toLocaleString("en");
const percent = (share) => `${Number((share * 100).toFixed(1))} %`;

/** So many digits without zeros at the end. */
const plain = (value, digits = 6) => `${Number(value.toPrecision(digits))}`.replace("-", "−");

/** 1234567 -> 1.23M */
function short(value, digits = 3) {
  if (!there(value)) return MISSING;
  for (const [size, suffix] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= size * 0.9995) return plain(value / size, digits) + suffix;
  }
  return plain(value, digits);
}

/** Decimals that show two figures of an interval's width, but no more than four of the estimate. */
function decimals([estimate, low, high]) {
  const shown = Math.max(Math.abs(estimate ?? 0) * 1e-2, there(low) ? high - low : 0);
  return shown > 0 ? Math.min(4, Math.max(0, 1 - Math.floor(Math.log10(shown)))) : 1;
}
/** A found interval is [estimate, low, high, mark]; the mark says why there are no bounds, see `report.marks`. */
function interval(found, digits = decimals(found)) {
  const [estimate, low, high] = found.slice(0, 3).map((value) => number(value, digits));
  return low === MISSING ? marked(estimate, found) : `${estimate} [${low}, ${high}]`;
}
const marked = (text, found) => (found[3] ? `${text} ${found[3]}` : text);

// --- Labels ----------------------------------------------------------------------------------------------------------

const MARKERS = {
  o: "M-1,0A1,1 0 1 1 1,0A1,1 0 1 1 -1,0Z", s: "M-.9,-.9H.9V.9H-.9Z", "^": "M0,-1.15L1.05,.8H-1.05Z",
  D: "M0,-1.25L1.25,0L0,1.25L-1.25,0Z", v: "M0,1.15L1.05,-.8H-1.05Z",
  P: "M-.4,-1.1H.4V-.4H1.1V.4H.4V1.1H-.4V.4H-1.1V-.4H-.4Z",
  X: "M-1.1,-.55L-.55,-1.1L0,-.55L.55,-1.1L1.1,-.55L.55,0L1.1,.55L.55,1.1L0,.55L-.55,1.1L-1.1,.55L-.55,0Z",
};
const colour = (label) => labels[label].colour;
const marker = (label, x, y, radius) =>
  svg("path", {class: "marker", d: MARKERS[labels[label].marker], ...of(label),
    transform: `translate(${x.toFixed(1)},${y.toFixed(1)}) scale(${radius})`});
const of = (label) => ({colour: colour(label), "data-label": label});
const shown = (label) => !state.hidden.has(label);
const named = (label) => [el("span", {class: "swatch", colour: colour(label)}), labels[label].name];

const isCompared = (task) => task.left_out === null;

/** Labels that are shown, the best IQM over tasks first, if there is one. */
function ranked() {
  const scores = report.aggregates[state.kind]?.iqm, order = labels.map((_, label) => label).filter(shown);
  return scores ? order.sort((a, b) => scores[b][0] - scores[a][0]) : order;
}

// --- Scales ----------------------------------------------------------------------------------------------------------

/** A text for each tick, with as many digits as it takes to tell it from the next one. */
function tickText(ticks) {
  const power = (value) => Math.floor(Math.log10(Math.abs(value) || 1) + 1e-9);
  const step = Math.min(...ticks.slice(1).map((tick, i) => tick - ticks[i]));
  return (value) => short(value, Number.isFinite(step) ? Math.max(3, power(value) - power(step) + 1) : 3);
}

function linearTicks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((multiple) => multiple * power >= rough * 0.999) * power;
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(i * step);
  return ticks;
}

/**
 * A logarithmic axis. Where there are values of both signs, or negative ones, it is linear within a thousandth of the
 * largest of them around 0 and logarithmic beyond: `transform` is a sign times log10(1 + |value| / unit).
 */
function logScale(low, high, signed) {
  const unit = signed ? Math.max(Math.abs(low), Math.abs(high)) / 1000 : 0;
  const transform = signed
    ? (value) => Math.sign(value) * Math.log10(1 + Math.abs(value) / unit)
    : (value) => (value > 0 ? Math.log10(value) : NaN);
  const candidates = (multiples) => {
    const found = signed ? [0] : [];
    const smallest = signed ? Math.ceil(Math.log10(unit)) + 1 : Math.floor(Math.log10(low));
    for (let power = smallest; 10 ** power <= Math.max(Math.abs(low), Math.abs(high)); power++) {
      for (const multiple of multiples) {
        found.push(multiple * 10 ** power);
        if (signed) found.push(-multiple * 10 ** power);
      }
    }
    return found.filter((value) => value >= low && value <= high).sort((a, b) => a - b);
  };
  const powers = candidates([1]);
  const ticks = powers.length >= 3 ? powers : candidates([1, 2, 5]);
  return {transform, ticks: ticks.length >= 2 ? ticks : linearTicks(low, high, 4)};
}

function scale(values, {log = false, from, to, pixels, ticks, pad = 0}) {
  let low = Infinity, high = -Infinity;
  const positive = values.filter((value) => value > 0);
  const signed = log && from === undefined && positive.length < values.length;
  const used = log && !signed ? positive : values;
  for (const value of used) { low = Math.min(low, value); high = Math.max(high, value); }
  if (!log && from !== undefined) low = from;
  if (to !== undefined) high = to;
  if (!(low <= high)) [low, high] = [0, 1];
  if (low === high) [low, high] = [low - Math.abs(low || 1) * 0.1, high + Math.abs(high || 1) * 0.1];
  const kind = log ? logScale(low, high, signed) : {transform: (value) => value, ticks: linearTicks(low, high, ticks)};
  let [a, b] = [kind.transform(low), kind.transform(high)];
  [a, b] = [a - pad * (b - a), b + pad * (b - a)];
  const share = (value) => (kind.transform(value) - a) / (b - a);
  const place = (value) => (there(value) ? pixels[0] + (pixels[1] - pixels[0]) * share(value) : NaN);
  if (!log && pad) kind.ticks = linearTicks(a, b, ticks);
  return {place, ticks: kind.ticks};
}

// --- A panel of lines ------------------------------------------------------------------------------------------------

/** The parts of a line between gaps, as one path. */
function path(points) {
  let text = "", pen = "M";
  for (const [x, y] of points) {
    if (Number.isFinite(x) && Number.isFinite(y)) {
      text += `${pen}${x.toFixed(1)},${y.toFixed(1)}`;
      pen = "L";
    } else {
      pen = "M";
    }
  }
  return text;
}

/** The closest point of a line that is drawn: [distance, index of the nearer end]. */
function distance(points, x, y) {
  let best = [Infinity, -1];
  for (let i = 0; i < points.length; i++) {
    const [ax, ay] = points[i];
    if (!Number.isFinite(ax + ay)) continue;
    const [bx, by] = points[i + 1] ?? [NaN, NaN];
    let share = 0;
    if (Number.isFinite(bx + by)) {
      const [dx, dy] = [bx - ax, by - ay];
      share = Math.min(1, Math.max(0, ((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy || 1)));
    }
    const [px, py] = share ? [ax + share * (bx - ax), ay + share * (by - ay)] : [ax, ay];
    const here = Math.hypot(px - x, py - y);
    if (here < best[0]) best = [here, share > 0.5 ? i + 1 : i];
  }
  return best;
}

const RIGHT = 20;
const charts = [];
const canvas = (id, width, height, attributes) => svg("svg",
  {class: "chart", "data-chart": id, viewBox: `0 0 ${width} ${height}`, width, height, ...attributes});

/**
 * A panel. `spec.lines()` gives the lines that are shown, each `{label, x, y, low, high, complete, describe(i)}`; single
 * runs have no `low`. It is drawn anew whenever what is shown or the width changes.
 */
function lineChart(host, spec) {
  charts.push(() => draw(host, spec));
}

function draw(host, spec) {
  const lines = spec.lines();
  const width = Math.max(240, host.clientWidth), height = spec.height ?? 250;
  const logX = spec.logX && state.logX;
  // On a logarithmic axis there is no step 0, whose scores would only take the room of the others.
  const yValues = lines.flatMap((line) => [line.y, line.low ?? [], line.high ?? []].flatMap((values) =>
    values.filter((value, i) => there(value) && (!logX || line.x[i] > 0))));
  const y = scale(yValues, {log: spec.logY && state.logY, from: spec.yFrom, to: spec.yTo, pixels: [height - 40, 10],
    ticks: 5, pad: spec.yFrom === undefined ? 0.04 : 0});
  const yText = spec.yFormat ?? tickText(y.ticks);
  const left = 30 + 6.8 * Math.max(1, ...y.ticks.map((tick) => yText(tick).length));
  const xValues = lines.flatMap((line) => line.x);
  const x = scale(xValues, {log: logX, from: spec.xFrom ?? 0, to: spec.xTo, pixels: [left, width - RIGHT],
    ticks: Math.max(2, Math.floor(width / 90))});
  const xText = spec.xFormat ?? tickText(x.ticks);

  const chart = canvas(spec.id, width, height, {tabindex: 0, role: "group",
    "aria-label": `${spec.title}: ${spec.yLabel} against ${spec.xLabel}. Arrow keys step through points and curves.`});
  const clip = `clip-${spec.id}`;
  const inside = {x: left, y: 4, width: width - RIGHT - left, height: height - 44};
  chart.append(svg("clipPath", {id: clip}, svg("rect", inside)));
  for (const tick of y.ticks) {
    const at = y.place(tick);
    chart.append(svg("line", {class: "grid-line", x1: left, x2: width - RIGHT, y1: at, y2: at}),
      svg("text", {x: left - 6, y: at + 4, "text-anchor": "end"}, yText(tick)));
  }
  for (const tick of x.ticks) {
    const at = x.place(tick);
    chart.append(svg("line", {class: "grid-line", x1: at, x2: at, y1: 10, y2: height - 40}),
      svg("text", {x: at, y: height - 25, "text-anchor": "middle"}, xText(tick)));
  }
  chart.append(svg("line", {class: "axis", x1: left, x2: width - RIGHT, y1: height - 40, y2: height - 40}),
    svg("text", {x: (left + width - RIGHT) / 2, y: height - 7, "text-anchor": "middle"}, spec.xLabel),
    svg("text", {transform: `translate(12,${(height - 30) / 2}) rotate(-90)`, "text-anchor": "middle"}, spec.yLabel));

  for (const line of lines) line.points = line.x.map((value, i) => [x.place(value), y.place(line.y[i])]);
  const [single, whole] = [lines.filter((line) => !line.low), lines.filter((line) => line.low)];
  const drawing = svg("g", {"clip-path": `url(#${clip})`});
  // The more runs there are, the fainter each is.
  const opacity = Math.max(0.14, Math.min(0.5, 14 / Math.max(1, single.length)));
  for (const line of single) {
    drawing.append(svg("path", {class: "run", d: path(line.points), ...of(line.label), opacity}));
  }
  for (const line of whole) drawing.append(...bands(line, x, y));
  for (const line of whole) drawing.append(...curve(line));
  chart.append(drawing);
  for (const line of whole) {
    const every = Math.max(1, Math.ceil(line.points.length / 11));
    line.points.forEach(([px, py], i) => {
      if (i % every === 0 && Number.isFinite(px + py)) {
        chart.append(marker(line.label, px, py, 3.4));
      }
    });
  }
  if (!lines.length) {
    chart.append(svg("text", {x: (left + width) / 2, y: height / 2, "text-anchor": "middle"}, "nothing is shown"));
  }
  const layer = svg("g", {class: "hover"});
  chart.append(layer);
  const focused = host.contains(document.activeElement);
  host.replaceChildren(chart);
  interact(chart, layer, [...whole, ...single], width);
  if (focused) chart.focus({preventScroll: true});
}

function bands(line, x, y) {
  // With gaps where a point has no interval.
  const parts = [];
  let part = [];
  line.x.forEach((value, i) => {
    const [px, low, high] = [x.place(value), y.place(line.low[i]), y.place(line.high[i])];
    if (Number.isFinite(px + low + high)) part.push([px, low, high]);
    else { parts.push(part); part = []; }
  });
  parts.push(part);
  const outline = (each) => [...each.map(([px, low]) => [px, low]), ...each.map(([px, , high]) => [px, high]).reverse()];
  return parts.filter((each) => each.length > 1)
    .map((each) => svg("path", {class: "band", ...of(line.label), d: `${path(outline(each))}Z`}));
}

function curve(line) {
  const solid = line.points.map((point, i) => (line.complete[i] ? point : [NaN, NaN]));
  const whole = svg("path", {class: "iqm", ...of(line.label), d: path(solid)});
  if (line.complete.every(Boolean)) return [whole];
  return [svg("path", {class: "iqm incomplete", ...of(line.label), d: path(line.points)}), whole];
}

// --- Pointing at a line ----------------------------------------------------------------------------------------------

const tooltip = byId("tooltip");

function interact(chart, layer, lines, width) {
  let at = [0, -1];
  const show = (line, index, where) => {
    const [x, y] = line.points[index];
    const d = path(line.points);
    layer.replaceChildren(svg("path", {class: "found", d}), svg("path", {class: "found-core", d, ...of(line.label)}),
      svg("circle", {class: "marker", cx: x, cy: y, r: 4.5, ...of(line.label)}));
    const box = chart.getBoundingClientRect();
    const factor = box.width / width;
    showTooltip(line.describe(index), colour(line.label), where ?? [box.left + x * factor, box.top + y * factor]);
  };
  const hide = () => {
    layer.replaceChildren();
    tooltip.hidden = true;
    at = [0, -1];
  };
  const point = (event) => {
    const box = chart.getBoundingClientRect();
    const factor = width / box.width;
    const [x, y] = [(event.clientX - box.left) * factor, (event.clientY - box.top) * factor];
    let best = null, least = 24;
    for (const line of lines) {
      const [far, index] = distance(line.points, x, y);
      // Runs are many and thin: the thick line wins where it is about as close.
      const weighed = far - (line.low ? 3 : 0);
      if (weighed < least) { least = weighed; best = [line, index]; }
    }
    if (best) show(...best, [event.clientX, event.clientY]);
    else hide();
  };
  chart.addEventListener("pointermove", point);
  chart.addEventListener("pointerdown", point);
  chart.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
  chart.addEventListener("blur", hide);
  chart.addEventListener("keydown", (event) => {
    const step = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
    if (event.key === "Escape") hide();
    if (!step || !lines.length) return;
    event.preventDefault();
    const place = Math.min(lines.length - 1, Math.max(0, at[0] + step[0]));
    const drawn = lines[place].points.flatMap((p, i) => (Number.isFinite(p[0] + p[1]) ? [i] : []));
    if (!drawn.length) { at = [place, at[1]]; return; }
    // The same point of another line, or the next one that is drawn.
    const wanted = at[1] < 0 ? drawn[0] : at[1] + step[1];
    const index = step[1] < 0
      ? drawn.findLast((i) => i <= wanted) ?? drawn[0] : drawn.find((i) => i >= wanted) ?? drawn.at(-1);
    at = [place, index];
    show(lines[place], index);
    byId("spoken").textContent = [...tooltip.children].map((line) => line.textContent).join(", ");
  });
}

function showTooltip(texts, base, [x, y]) {
  tooltip.className = "of-label";
  tooltip.style.setProperty("--base", base);
  tooltip.replaceChildren(...texts.map((text, i) => el("div", {}, i ? text : el("strong", {}, text))));
  tooltip.hidden = false;
  const box = tooltip.getBoundingClientRect();
  const right = x + 16 + box.width > innerWidth - 4 ? x - 16 - box.width : x + 16;
  tooltip.style.left = `${Math.max(4, right)}px`;
  tooltip.style.top = `${Math.max(4, Math.min(y + 14, innerHeight - box.height - 4))}px`;
}

const confidence = percent(report.bootstrap.confidence);
const bandOf = (curve) => (state.band === "pointwise"
  ? {low: curve.low, high: curve.high} : {low: curve.simultaneous_low, high: curve.simultaneous_high});

/** Lines of the tooltip about a point of a curve with a band. */
function aboutPoint(curve, i, first, what, format) {
  const bounds = (low, high) => `[${format(low[i])}, ${format(high[i])}]`;
  const intervals = there(curve.low[i])
    ? [`pointwise ${bounds(curve.low, curve.high)}`,
      `simultaneous ${bounds(curve.simultaneous_low, curve.simultaneous_high)}`]
    : ["no interval: too few runs, or no spread"];
  return [...first, `${what} ${format(curve.estimate[i])}`, ...intervals];
}

const hypers = (run) => Object.entries(run.hypers).map(([name, value]) => `${name} ${there(value) ? value : MISSING}`);

// --- Sections --------------------------------------------------------------------------------------------------------

const withBand = (curve) =>
  ({label: curve.label, x: curve.x, y: curve.estimate, complete: curve.complete, ...bandOf(curve)});

function curvesSection() {
  const panels = byId("panels");
  tasks.forEach((task, index) => {
    const cells = report.cells.filter((cell) => cell.task === index);
    const about = (cell, i) => aboutPoint(cell, i,
      [labels[cell.label].name, `${cell.run_count} runs`, `step ${grouped(cell.x[i])}`], "IQM",
      (value) => number(value, decimals([cell.estimate[i], cell.low[i], cell.high[i]])));
    const aboutRun = (cell, run, i) => [labels[cell.label].name, `seed ${run.seed}`, ...hypers(run),
      `step ${grouped(cell.steps[i])}`, `return ${number(run.returns[i], decimals([run.returns[i]]))}`,
      ...(run.diverged ? ["this run diverged"] : [])];
    const runs = (cell) => (state.runs ? cell.runs : []).map((run) =>
      ({label: cell.label, x: cell.steps, y: run.returns, describe: (i) => aboutRun(cell, run, i)}));
    const lines = () => cells.filter((cell) => shown(cell.label))
      .flatMap((cell) => [{...withBand(cell), describe: (i) => about(cell, i)}, ...runs(cell)]);
    panel(panels, {id: `task-${index}`, title: task.name, yLabel: "episode return", logX: true, logY: true, lines,
      xLabel: task.offline ? "gradient steps" : "environment steps"});
  });
  if (report.aggregate_curves.length) {
    const about = (curve, i) => aboutPoint(curve, i,
      [labels[curve.label].name, `${percent(curve.x[i])} of the budget`], "IQM", (value) => number(value, 3));
    panel(panels, {id: "all-tasks", title: `all compared tasks (${tasks.filter(isCompared).length})`,
      xLabel: "share of the step budget", yLabel: "normalised return", xFormat: percent, logX: true,
      lines: () => report.aggregate_curves.filter((curve) => shown(curve.label))
        .map((curve) => ({...withBand(curve), describe: (i) => about(curve, i)}))});
  }
  if (Math.max(...report.cells.map((cell) => cell.run_count)) > report.limits.runs) {
    byId("runs-shown").textContent =
      ` (at most ${report.limits.runs} of a label, evenly over the ranks of final scores; the IQM is of all)`;
  }
}

function panel(host, spec) {
  const plot = el("div");
  host.append(el("div", {}, el("h3", {}, spec.title), plot));
  lineChart(plot, spec);
}

function profilesSection() {
  const {x} = report.profiles.final;
  const about = (band, i) => aboutPoint(band, i,
    [labels[band.label].name, `above ${number(band.x[i], 2)}`], "share of runs", (value) => number(value, 3));
  const bandsOf = ({x, bands}) => bands.filter((band) => shown(band.label))
    .map((band) => ({...band, x, complete: x.map(() => true)}));
  lineChart(byId("profile"), {id: "profile", title: "Performance profiles", height: 340, xLabel: "normalised score",
    yLabel: "share of runs above it", yFormat: percent, yFrom: 0, yTo: 1, xFrom: x[0], xTo: x.at(-1), xFormat: plain,
    lines: () => bandsOf(report.profiles[state.kind])
      .map((band) => ({...withBand(band), describe: (i) => about(band, i)}))});
}

const pen = document.createElement("canvas").getContext("2d");
/** Pixels that a text of the page's font takes, at this size. */
function textWidth(text, size) {
  pen.font = `${size}px ${getComputedStyle(document.body).fontFamily}`;
  return Math.ceil(pen.measureText(text).width);
}

/** As much of the beginning of a text as there is room for. */
function fitted(text, size, room) {
  if (textWidth(text, size) <= room) return text;
  let end = text.length - 1;
  while (end > 1 && textWidth(`${text.slice(0, end)}…`, size) > room) end--;
  return `${text.slice(0, end)}…`;
}

function forestSection() {
  for (const [statistic, title] of Object.entries(report.statistics)) {
    const plot = el("div");
    byId("forest").append(el("div", {}, el("h3", {}, title[0].toUpperCase() + title.slice(1)), plot));
    charts.push(() => forest(plot, statistic, title));
  }
}

function forest(host, statistic, title) {
  const order = ranked(), found = report.aggregates[state.kind][statistic];
  const width = Math.max(260, host.clientWidth);
  // Where there is little width, name and numbers are a line of their own above the interval.
  const narrow = width < 440;
  const row = narrow ? 40 : 24, height = order.length * row + 34;
  // A name takes a third of the width at most; a longer one loses its end, and is whole in the tooltip.
  const numbers = Math.max(0, ...order.map((label) => textWidth(interval(found[label], 3), 11.5)));
  const room = narrow ? width - numbers - 20 : width / 3;
  const names = new Map(order.map((label) => [label, fitted(labels[label].name, 12.5, room)]));
  const longest = Math.max(30, ...[...names.values()].map((name) => textWidth(name, 12.5)));
  const [left, right] = narrow ? [14, width - 14] : [14 + longest, width - numbers - 14];
  const x = scale(order.flatMap((label) => found[label].slice(0, 3)).filter(there),
    {pixels: [left, right], ticks: Math.max(2, Math.floor((right - left) / 55)), pad: 0.06});
  const words = order.map((label) => `${labels[label].name} ${interval(found[label], 3)}`);
  const chart = canvas(statistic, width, height, {role: "img", "aria-label": `${title}: ${words.join("; ")}`});
  for (const tick of x.ticks) {
    const at = x.place(tick);
    chart.append(svg("line", {class: "grid-line", x1: at, x2: at, y1: 4, y2: height - 26}),
      svg("text", {x: at, y: height - 10, "text-anchor": "middle"}, plain(tick)));
  }
  order.forEach((label, i) => {
    const top = i * row + 4, at = top + (narrow ? 28 : 12), baseline = top + 16;
    const [estimate, low, high] = found[label];
    chart.append(svg("g", of(label), svg("title", {}, words[i]),
      svg("text", {class: "name", x: narrow ? 2 : left - 10, y: baseline, "text-anchor": narrow ? "start" : "end"},
        names.get(label)),
      ...(there(low) ? [svg("line", {class: "interval", x1: x.place(low), x2: x.place(high), y1: at, y2: at})] : []),
      marker(label, x.place(estimate), at, 4),
      svg("text", {class: "value", x: width - 2, y: baseline, "text-anchor": "end"}, interval(found[label], 3))));
  });
  host.replaceChildren(chart);
}

function matrix() {
  const order = ranked(), found = report.improvements[state.kind];
  const head = el("tr", {}, el("td", {}, ""), ...order.map((label) => el("th", {scope: "col"}, labels[label].name)));
  const rows = order.map((label) => el("tr", {"data-label": label}, el("th", {scope: "row"}, ...named(label)),
    ...order.map((against) => {
      const cell = found[label][against];
      if (!cell) return el("td", {}, "");
      const [estimate, low, high] = cell;
      const decided = there(low) && (low > 0.5 || high < 0.5);
      const shade = Math.round(Math.abs(estimate - 0.5) * 200);
      const survives = cell[4] ? "†" : "";
      const td = el("td", {}, el(decided ? "strong" : "span", {}, marked(number(estimate, 2), cell) + survives),
        el("small", {}, there(low) ? `${number(low, 2)}–${number(high, 2)}` : ""));
      const side = estimate > 0.5 ? "better" : "worse";
      td.style.background = `color-mix(in srgb, var(--${side}) ${shade}%, var(--surface))`;
      td.title = `${labels[label].name} against ${labels[against].name}: ${interval(cell, 3)}`;
      return td;
    })));
  byId("matrix").replaceChildren(el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)));
}

// --- Tables ----------------------------------------------------------------------------------------------------------

/** A table that sorts by the heading that is clicked. A column is [heading, row -> value, row -> text or nodes]. */
function table(host, name, columns, rows) {
  let by = null, sign = 1;
  const isText = columns.map(([, value]) => typeof value(rows[0]) === "string");
  const body = el("tbody"), heads = columns.map(([heading], i) => {
    const button = el("button", {type: "button"}, heading);
    button.addEventListener("click", () => {
      // Numbers begin with the largest one.
      sign = by === i ? -sign : (isText[i] ? 1 : -1);
      by = i;
      show();
    });
    return el("th", {scope: "col", class: isText[i] ? "text" : ""}, button);
  });
  const compare = (x, y) => {
    if (!there(x) || !there(y)) return there(y) - there(x);
    return sign * (typeof x === "string" ? x.localeCompare(y, "en", {numeric: true}) : x - y);
  };
  const cell = (row, [, value, text], i) => {
    const content = [text ? text(row) : value(row)].flat();
    return i === 0 ? el("th", {scope: "row"}, ...content) : el("td", {class: isText[i] ? "text" : ""}, ...content);
  };
  const show = () => {
    heads.forEach((head, i) => {
      if (by === i) head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    const sorted = by === null ? rows : [...rows].sort((a, b) => compare(columns[by][1](a), columns[by][1](b)));
    body.replaceChildren(...sorted.filter((row) => shown(row.label))
      .map((row) => el("tr", {"data-label": row.label}, ...columns.map((column, i) => cell(row, column, i)))));
  };
  charts.push(show);
  host.append(el("div", {class: "scroll", tabindex: 0, role: "region", "aria-label": name},
    el("table", {}, el("caption", {class: "hidden"}, name), el("thead", {}, el("tr", {}, ...heads)), body)));
}

const labelColumn = ["label", (row) => labels[row.label].name, (row) => named(row.label)];
const steps = (row) => (row.first_final_step === row.last_final_step ? short(row.last_final_step)
  : `${short(row.first_final_step)} to ${short(row.last_final_step)}`);

function taskTables() {
  tasks.forEach((task, index) => {
    const rows = report.table.filter((row) => row.task === index);
    const host = el("div", {class: "task"}, el("h3", {}, task.name));
    byId("task-tables").append(host);
    table(host, task.name, [
      labelColumn,
      ["runs", (row) => row.runs, (row) => `${row.runs}${row.runs < row.planned_runs ? ` of ${row.planned_runs}` : ""}`],
      ["diverged", (row) => row.diverged, (row) => `${row.diverged}`],
      ["untrained", (row) => row.untrained[0], (row) => number(row.untrained[0], decimals(row.final))],
      ["final", (row) => row.final[0], (row) => interval(row.final)],
      [`last ${report.limits.last}`, (row) => row.last[0], (row) => interval(row.last)],
      ["area under the curve", (row) => row.auc[0], (row) => interval(row.auc)],
      ["at step", (row) => row.last_final_step, steps],
    ], rows);
  });
}

function divergedSection() {
  const {total, runs} = report.diverged, host = byId("diverged-runs");
  if (!total) { host.append(el("p", {}, "No run diverged.")); return; }
  const all = report.cells.reduce((sum, cell) => sum + cell.run_count, 0);
  const listed = runs.length < total ? `; the first ${runs.length} are listed.` : ".";
  host.append(el("p", {}, `${grouped(total)} of ${grouped(all)} runs diverged${listed}`));
  table(host, "Diverged runs", [
    labelColumn,
    ["task", (row) => tasks[row.task].name],
    ["seed", (row) => row.seed, (row) => `${row.seed}`],
    ["settings that vary", (row) => hypers(row).join(", ")],
    ["since step", (row) => row.step, (row) => grouped(row.step)],
    ["not finite at first", (row) => row.cause ?? "",
      (row) => (row.cause === null ? "not recorded" : `${row.cause} (step ${grouped(row.cause_step)})`)],
    ["counts as", (row) => row.score,
      (row) => (row.counted ? number(row.score, decimals([row.score])) : "not yet, it is still running")],
  ], runs);
}

function speedTable() {
  const list = (values) => values.join(", ") || MISSING;
  const seconds = (value) => (there(value) ? `${number(value, 1)} s` : MISSING);
  const memory = (bytes) => (there(bytes) ? `${number(bytes / 2 ** 30, 2)} GiB` : MISSING);
  table(byId("speed-table"), "Speed and memory", [
    labelColumn,
    ["task", (row) => tasks[row.task].name],
    ["runs", (row) => row.run_count, (row) => `${row.run_count}`],
    ["width", (row) => row.width[0], (row) => list(row.width)],
    ["devices", (row) => row.devices[0], (row) => list(row.devices)],
    ["steps/s", (row) => row.steps_per_second, (row) => short(row.steps_per_second)],
    ["compile", (row) => row.compile_seconds, (row) => seconds(row.compile_seconds)],
    ["run", (row) => row.run_seconds, (row) => seconds(row.run_seconds)],
    ["peak memory", (row) => row.peak_memory_bytes, (row) => memory(row.peak_memory_bytes)],
  ], report.cells);
}

// --- Words -----------------------------------------------------------------------------------------------------------

const bullets = (texts) => el("ul", {}, ...texts.map((text) => el("li", {}, text)));
const counted = (count, noun) => `${grouped(count)} ${noun}${count === 1 ? "" : "s"}`;

function header(runs) {
  const {device, git_revision: revision} = report.manifests.common;
  byId("title").textContent = report.title;
  document.title = `${report.title}: rlsuite report`;
  const size = `${counted(labels.length, "label")} on ${counted(tasks.length, "task")}, ${counted(runs, "run")}`;
  byId("subtitle").textContent = [size, device, revision && `rlsuite at ${revision}`].filter(Boolean).join(" · ");
}

/** What the normalised scores of the compared tasks are: a text for each pair of returns. */
function normalisations() {
  const byReference = new Map();
  for (const {name, reference} of tasks.filter(isCompared)) {
    const key = JSON.stringify(reference);
    byReference.set(key, [...(byReference.get(key) ?? []), name]);
  }
  return [...byReference].map(([key, names]) => {
    const {low, high, low_source: lowSource, high_source: highSource} = JSON.parse(key);
    const bound = (value, source) => plain(value, 5) + (source ? ` (${source})` : "");
    return `${names.join(", ")}: 0 is ${bound(low, lowSource)}, 1 is ${bound(high, highSource)}`;
  });
}

/** Which hyperparameters vary within a label: a text for each set of them. */
function variations(label) {
  const byNames = new Map();
  for (const cell of report.cells.filter((each) => each.label === label && each.varied.length)) {
    const names = cell.varied.join(", ");
    byNames.set(names, [...(byNames.get(names) ?? []), tasks[cell.task].name]);
  }
  return [...byNames].map(([names, where]) => `${labels[label].name} on ${where.join(", ")}: ${names}`);
}

function choices() {
  const runs = report.cells.reduce((sum, cell) => sum + cell.run_count, 0);
  header(runs);
  const compared = tasks.filter(isCompared).map((task) => task.name);
  const leftOut = tasks.filter((task) => !isCompared(task)).map((task) => `${task.name}: ${task.left_out}`);
  const varied = labels.flatMap((_, label) => variations(label));
  const {repetitions, seed} = report.bootstrap;
  const marks = report.marks.filter(({used}) => used).map(({mark, meaning}) => `${mark} ${meaning}.`);
  const add = (term, ...content) => byId("choice-list").append(el("dt", {}, term), el("dd", {}, ...content));

  add("Score of a run", "Its final score, the mean return of the episodes of its last evaluation; or the area under its "
    + "curve, the mean over all evaluations after step 0. The bar above chooses for everything but the curves; the "
    + "tables have both. The best evaluation is never reported.");
  add("Tasks", compared.length
    ? `Aggregates are over ${compared.length} of ${tasks.length}, which weigh the same: ${compared.join(", ")}.`
    : "All are left out, so that there is no aggregate over tasks.",
  ...(leftOut.length ? [" Left out:", bullets(leftOut)] : []));
  if (compared.length) {
    add("Normalised", "0 and 1 stand for these returns, values beyond are kept:", bullets(normalisations()));
  }
  const shared = report.improvement_tasks;
  if (shared.length === 1 && shared[0].tasks.join() !== compared.join() && shared[0].tasks.length) {
    add("Improvement", `Its probability needs no reference returns and is over ${shared[0].tasks.join(", ")}.`);
  } else if (shared.length > 1) {
    add("Improvement", "Its probability is over the tasks that both labels ran:", bullets(shared.map(
      ({tasks: both, pairs}) => `${both.join(", ") || "none in common"}: ${pairs.join("; ")}`)));
  }
  add("Intervals", `${confidence}, by ${grouped(repetitions)} resamples of a stratified bootstrap over runs, `
    + `seed ${seed}; of P(X > Y) score intervals. They say how the figure could have come out with other seeds. Two that overlap do not show that `
    + "two methods are equal: see the probability of improvement.",
  ...(marks.length ? [" Without one:", bullets(marks)] : []));
  add("Diverged runs", `${grouped(report.diverged.total)} of ${grouped(runs)}. They count with their last finite score, `
    + "else with the floor of their task.");
  add("Hyperparameters", varied.length
    ? "Some labels pool runs of several settings: their intervals and bands are over settings as well as seeds."
    : "Every label is one setting on each task; its runs differ in their seed alone. How the setting was chosen is not "
      + "recorded here: choose it on other seeds than those reported.",
  ...(varied.length ? [bullets(varied)] : []));
  if (report.notes.length) {
    byId("notes").append(el("details", {open: report.notes.length <= 6},
      el("summary", {}, `${counted(report.notes.length, "note")} on these results`), bullets(report.notes)));
  }
}

/** Nested values as rows of dotted names. */
function flat(value, name = "") {
  if (value !== null && typeof value === "object" && !Array.isArray(value)) {
    return Object.entries(value).flatMap(([key, each]) => flat(each, name ? `${name}.${key}` : key));
  }
  const text = Array.isArray(value) && value.every((each) => typeof each !== "object")
    ? value.join(name === "command" ? " " : ", ") : JSON.stringify(value);
  return [[name, typeof value === "string" ? value : text]];
}

function manifests() {
  const {common, shards} = report.manifests;
  const facts = (values) => el("div", {class: "scroll"}, el("table", {class: "facts"}, el("tbody", {},
    ...flat(values).map(([name, text]) => el("tr", {}, el("th", {scope: "row"}, name), el("td", {}, text))))));
  const list = byId("manifest-list");
  const what = shards.length > 1 ? `In common to all ${shards.length} shards` : "The one shard";
  list.append(el("details", {}, el("summary", {}, what), facts(common)));
  // One shard alone has nothing that is not in common.
  for (const shard of shards.length > 1 ? shards : []) {
    const details = el("details", {}, el("summary", {}, shard.shard));
    details.addEventListener("toggle", () => { if (details.children.length < 2) details.append(facts(shard)); });
    list.append(details);
  }
}

// --- Controls --------------------------------------------------------------------------------------------------------

function update() {
  tooltip.hidden = true;
  for (const node of document.querySelectorAll(".kind")) node.textContent = report.kinds[state.kind];
  for (const node of document.querySelectorAll(".band:not(path)")) node.textContent = state.band;
  byId("band-meaning").textContent = state.band === "pointwise"
    ? "A pointwise band holds each single point of the true curve with this confidence; read the shape of a curve off "
      + "the simultaneous one."
    : "A simultaneous band holds the whole true curve with this confidence.";
  byId("log-meaning").textContent = state.logY
    ? "The logarithmic axis is of episode returns alone, and where some are negative it is linear near 0, within a "
      + "thousandth of the largest." : "";
  for (const chart of charts) chart();
}

function controls() {
  labels.forEach((label, index) => {
    const box = el("input", {type: "checkbox", checked: true, "data-toggle": index});
    box.addEventListener("change", () => {
      state.hidden[box.checked ? "delete" : "add"](index);
      update();
    });
    const sample = svg("svg", {viewBox: "0 0 26 12", colour: label.colour, "aria-hidden": "true"},
      svg("line", {class: "iqm", x1: 1, x2: 25, y1: 6, y2: 6}), marker(index, 13, 6, 4));
    byId("algorithms").append(el("label", {}, box, sample, label.name));
  });
  byId("algorithms").append(byId("all"), byId("none"));
  const all = (checked) => {
    state.hidden = new Set(checked ? [] : labels.keys());
    for (const box of document.querySelectorAll("[data-toggle]")) box.checked = checked;
    update();
  };
  byId("all").addEventListener("click", () => all(true));
  byId("none").addEventListener("click", () => all(false));
  for (const name of ["kind", "band"]) {
    for (const radio of document.getElementsByName(name)) {
      radio.addEventListener("change", () => { state[name] = radio.value; update(); });
    }
  }
  for (const [id, name] of [["log-x", "logX"], ["log-y", "logY"], ["runs", "runs"]]) {
    byId(id).addEventListener("change", () => { state[name] = byId(id).checked; update(); });
  }
  byId("theme").addEventListener("change", () => { document.documentElement.style.colorScheme = byId("theme").value; });
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    requestAnimationFrame(update);
  });
  addEventListener("scroll", () => { tooltip.hidden = true; }, {passive: true});
}

for (const node of document.querySelectorAll(".confidence")) node.textContent = confidence;
const compared = tasks.some(isCompared), paired = state.kind in report.improvements;
for (const node of document.querySelectorAll(".needs-aggregate")) node.hidden = !compared;
for (const node of document.querySelectorAll(".needs-score")) node.hidden = !compared && !paired;
for (const node of document.querySelectorAll(".needs-pairs")) node.hidden = !paired;
choices();
controls();
curvesSection();
if (compared) {
  forestSection();
  profilesSection();
}
if (paired) charts.push(matrix);
taskTables();
divergedSection();
speedTable();
manifests();
update();
})();
