"use strict";
// Text from a run reaches the page through textContent only, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const groups = data.groups;
const single = groups.length === 1 && groups[0].runs.length === 1 ? groups[0].runs[0] : null;
const content = document.getElementById("content");

function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") element.className = value; else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}
function draw(parent, name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}
const isNumber = value => typeof value === "number" && Number.isFinite(value);
const scientific = (value, digits) => value.toExponential(digits).replace("e+", "e");
// Ratios near 1 by what they differ from it.
const aroundOne = (difference, digits) => `1 ${difference < 0 ? "−" : "+"} ${scientific(Math.abs(difference), digits)}`;
function show(value) {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (value !== 1 && Math.abs(value - 1) < 5e-5) return aroundOne(value - 1, 1);
  if (size >= 1e6 || size < 1e-3) return scientific(value, 2);
  if (size >= 1000) return value.toFixed(0);
  return String(Number(value.toPrecision(4)));
}
const color = i => `var(--s${i % 8})`;

// ---- Series: [{step, value, spread}] of a key -----------------------------------------------------------------
function ofRun(run, key, spreadKey) {
  return run.metrics.filter(line => isNumber(line[key]))
    .map(line => ({step: line.step, value: line[key], spread: spreadKey ? line[spreadKey] : null}));
}
// Over the runs of a group, at the steps that all of them have, so that a run's end does not bend the curve.
function ofGroup(group, key) {
  const steps = new Map();
  for (const run of group.runs)
    for (const {step, value} of ofRun(run, key)) steps.set(step, [...(steps.get(step) || []), value]);
  const points = [];
  for (const [step, values] of steps) {
    if (values.length !== group.runs.length) continue;
    const mean = values.reduce((a, b) => a + b) / values.length;
    const squares = values.reduce((a, b) => a + (b - mean) ** 2, 0);
    points.push({step, value: mean, spread: values.length > 1 ? Math.sqrt(squares / (values.length - 1)) : null});
  }
  return points.sort((a, b) => a.step - b.step);
}

// ---- Charts ---------------------------------------------------------------------------------------------------
function tickUnit(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].find(u => u * power >= rough * (1 - 1e-6)) * power;
}
function ticks(low, high, count) {
  const unit = tickUnit(low, high, count);
  const list = [];
  for (let i = Math.ceil(low / unit - 1e-9); i * unit <= high + unit * 1e-9; i++) list.push(i * unit);
  return list;
}
function tickText(value, unit) {
  if (Math.abs(value) < unit * 1e-6) return "0";
  // As many digits as tell a tick from the next one.
  const digits = of => Math.max(0, Math.floor(Math.log10(Math.abs(of)) + 1e-9) - Math.floor(Math.log10(unit) + 1e-9));
  if (unit < 1e-4 && Math.abs(value - 1) < 0.01)
    return Math.abs(value - 1) < unit * 1e-6 ? "1" : aroundOne(value - 1, digits(value - 1)).replaceAll(" ", "");
  if (Math.abs(value) >= 1e5 || unit < 1e-4) return scientific(value, digits(value));
  return value.toFixed(Math.max(0, -Math.floor(Math.log10(unit) + 1e-9)));
}

// One chart: series = [{name, points, color}]; a cursor under the pointer or moved by the arrow keys fills the legend.
function chart(parent, title, series, {note = "", stacked = false} = {}) {
  series = series.filter(s => s.points.length > 0);
  if (series.length === 0) return;
  // What never changes is told in a line under the charts.
  const value = series[0].points[0].value;
  if (series[0].points.length > 1 && series.every(s => s.points.every(p => p.value === value))) {
    (parent.constants ??= []).push(`${title} ${show(value)}`);
    return;
  }
  const legend = make("div", {class: "legend", "aria-live": "polite"});
  const card = make("figure", {class: "card chart", style: "margin:0"}, make("h3", {}, title));
  if (note) card.append(make("div", {class: "note"}, note));
  const svg = draw(card, "svg", {tabindex: 0, role: "img"});
  card.append(legend);
  parent.append(card);
  const steps = [...new Set(series.flatMap(s => s.points.map(p => p.step)))].sort((a, b) => a - b);
  const at = series.map(s => new Map(s.points.map(p => [p.step, p])));
  const last = series.map(s => `${s.name} ${show(s.points[s.points.length - 1].value)}`).join(", ");
  svg.setAttribute("aria-label", `${title}, steps ${steps[0]} to ${steps[steps.length - 1]}; at the end: ${last}`);

  const tops = [];  // stacked: the upper edge of each series at each step
  if (stacked) {
    const sums = new Map(steps.map(step => [step, 0]));
    for (const map of at) {
      for (const step of steps) sums.set(step, sums.get(step) + (map.get(step)?.value ?? 0));
      tops.push(new Map(sums));
    }
  }
  // At rest: the last step that every curve has.
  const common = steps.findLastIndex(step => at.every(map => map.has(step)));
  const rest = common >= 0 ? common : steps.length - 1;
  let cursor = rest;
  let x = () => 0;
  function fillLegend() {
    const step = steps[cursor];
    legend.replaceChildren(`step ${step}`);
    series.forEach((s, i) => {
      const point = at[i].get(step);
      const spread = point && isNumber(point.spread) ? ` ± ${show(point.spread)}` : "";
      legend.append(make("span", {style: `--c:${s.color}`}, `${s.name} ${point ? show(point.value) : "–"}${spread}`));
    });
  }
  function paint(chosen) {
    const width = svg.clientWidth || 380, height = 200, left = 60, right = 10, top = 8, bottom = 24;
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    let low = stacked ? 0 : Infinity, high = -Infinity;
    series.forEach((s, i) => s.points.forEach(p => {
      const spread = isNumber(p.spread) ? p.spread : 0;
      low = Math.min(low, stacked ? 0 : p.value - spread);
      high = Math.max(high, stacked ? tops[i].get(p.step) : p.value + spread);
    }));
    if (low > 0 && low < (high - low) * 0.5) low = 0;  // near enough to zero to show it
    if (high - low <= 1e-12 * Math.abs(high)) {  // a level line
      const room = Math.abs(high) * 0.1 || 1;
      if (low !== 0) low -= room;
      high += room;
    }
    const pad = (high - low) * 0.05;
    if (low !== 0) low -= pad;
    high += pad;
    const end = steps[steps.length - 1] > steps[0] ? steps[steps.length - 1] : steps[0] + 1;
    x = step => left + (step - steps[0]) / (end - steps[0]) * (width - left - right);
    const y = value => height - bottom - (value - low) / (high - low) * (height - top - bottom);
    const rows = ticks(low, high, 4), unit = tickUnit(low, high, 4);
    for (const value of rows) {
      draw(svg, "line", {class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value)});
      draw(svg, "text", {x: left - 6, y: y(value) + 4, "text-anchor": "end"}, tickText(value, unit));
    }
    for (const step of ticks(steps[0], end, Math.max(2, Math.floor(width / 90))).filter(Number.isInteger))
      draw(svg, "text", {x: x(step), y: height - 6, "text-anchor": "middle"}, step);
    series.forEach((s, i) => {
      const path = (list, value) => list.map((p, k) => `${k ? "L" : "M"}${x(p.step).toFixed(1)},${y(value(p)).toFixed(1)}`).join("");
      if (stacked) {
        const edge = steps.map(step => ({step}));
        const below = i ? p => tops[i - 1].get(p.step) : () => 0;
        const d = path(edge, p => tops[i].get(p.step)) + path([...edge].reverse(), below).replace("M", "L") + "Z";
        draw(svg, "path", {d, style: `fill:${s.color}`, "fill-opacity": 0.75});
        return;
      }
      const banded = s.points.filter(p => isNumber(p.spread));
      if (banded.length > 1) {
        const d = path(banded, p => p.value + p.spread) + path([...banded].reverse(), p => p.value - p.spread).replace("M", "L") + "Z";
        draw(svg, "path", {d, style: `fill:${s.color}`, "fill-opacity": 0.14});
      }
      draw(svg, "path", {class: "curve", d: path(s.points, p => p.value), style: `stroke:${s.color}`});
      if (s.points.length < 3 || chosen)
        for (const p of s.points.filter(p => s.points.length < 3 || p.step === steps[cursor]))
          draw(svg, "circle", {cx: x(p.step), cy: y(p.value), r: 3.5, style: `fill:${s.color}`});
    });
    if (chosen) draw(svg, "line", {class: "cursor", x1: x(steps[cursor]), x2: x(steps[cursor]), y1: top, y2: height - bottom});
    fillLegend();
  }
  svg.addEventListener("pointermove", event => {
    const px = event.clientX - svg.getBoundingClientRect().left;
    cursor = steps.reduce((best, step, i) => Math.abs(x(step) - px) < Math.abs(x(steps[best]) - px) ? i : best, 0);
    paint(true);
  });
  svg.addEventListener("pointerleave", () => { cursor = rest; paint(false); });
  svg.addEventListener("keydown", event => {
    const move = {ArrowLeft: -1, ArrowRight: 1, Home: -steps.length, End: steps.length}[event.key];
    if (!move) return;
    cursor = Math.min(steps.length - 1, Math.max(0, cursor + move));
    paint(true);
    event.preventDefault();
  });
  new ResizeObserver(() => paint(false)).observe(svg);
}

function histogramChart(parent, run) {
  const lines = run.metrics.filter(line => line["importance_weight/histogram"]);
  if (lines.length === 0) return;
  const slider = make("input", {type: "range", min: 0, max: lines.length - 1, value: lines.length - 1, "aria-label": "Step of the histogram", style: "width:100%"});
  const legend = make("div", {class: "legend"});
  const card = make("figure", {class: "card chart", style: "margin:0"}, make("h3", {}, "Importance weights of tokens"),
    make("div", {class: "note"}, "trainer's probability by rollout's; share of tokens, logarithmic"));
  const svg = draw(card, "svg", {role: "img"});
  card.append(slider, legend);
  parent.append(card);
  function paint() {
    const line = lines[slider.value], {edges, counts} = line["importance_weight/histogram"];
    const width = svg.clientWidth || 380, height = 200, left = 60, right = 10, bottom = 24, top = 8;
    const total = counts.reduce((a, b) => a + b, 0) || 1;
    const ratio = edges.every(e => e > 0) ? Math.log2 : e => e;
    const a = ratio(edges[0]), b = ratio(edges[edges.length - 1]);
    const x = e => left + (ratio(e) - a) / (b - a) * (width - left - right);
    const floor = -5;  // a share of 1e-5
    const y = share => height - bottom - Math.max(0, 1 - Math.log10(share) / floor) * (height - top - bottom);
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    for (let power = floor; power <= 0; power++) {
      draw(svg, "line", {class: "grid", x1: left, x2: width - right, y1: y(10 ** power), y2: y(10 ** power)});
      draw(svg, "text", {x: left - 6, y: y(10 ** power) + 4, "text-anchor": "end"}, power < -2 ? `1e${power}` : 10 ** power);
    }
    counts.forEach((count, i) => {
      if (count === 0) return;
      const share = count / total, from = x(edges[i]);
      const bar = draw(svg, "rect", {x: from, width: Math.max(1, x(edges[i + 1]) - from - 1), y: y(share), height: Math.max(1, height - bottom - y(share)), style: `fill:${color(0)}`});
      draw(bar, "title", {}, `${show(edges[i])} to ${show(edges[i + 1])}: ${count} tokens, ${show(100 * share)} %`);
    });
    const marks = ratio === Math.log2 ? [0.25, 0.5, 1, 2, 4] : ticks(a, b, 5);
    for (const mark of marks.filter(m => m >= edges[0] && m <= edges[edges.length - 1]))
      draw(svg, "text", {x: x(mark), y: height - 6, "text-anchor": "middle"}, show(mark));
    legend.replaceChildren(`step ${line.step}: ${total} tokens, mean weight ${show(line["importance_weight/mean"])}`);
    svg.setAttribute("aria-label", `Histogram of importance weights at ${legend.textContent}`);
  }
  slider.addEventListener("input", paint);
  new ResizeObserver(paint).observe(svg);
}

// ---- What is charted ------------------------------------------------------------------------------------------
const sections = [
  ["Learning", [
    ["Reward", {"reward/mean": "reward", "val/reward": "validation"}, "band: standard deviation over the step's completions"],
    ["Accuracy", {"accuracy": "training", "val/accuracy": "validation"}],
    ["Response length", {"response_length/mean": "mean", "response_length/max": "longest"}, "tokens"],
    ["Truncated completions", {"truncated_share": "share"}],
    ["Entropy", {"entropy": "entropy"}, "nats a token"],
    ["Loss", {"loss": "loss"}], ["Gradient norm", {"grad_norm": "norm"}], ["Learning rate", {"lr": "rate"}],
    ["KL penalty", {"kl_penalty": "penalty"}],
    ["Clipped policy ratios", {"clip/low_share": "below", "clip/high_share": "above"}, "share of tokens"]]],
  ["Rollout against trainer", [
    ["token_mult_prob_error", {"token_mult_prob_error": "mean exp |Δ log p|"}, "1: the engine and the trainer agree"],
    ["Generation KL", {"gen_kl_error": "gen_kl_error"}, "0: they agree"],
    ["Policy KL and JS divergence", {"policy_kl_error": "policy KL", "js_divergence_error": "JS"}],
    ["Mean importance weight", {"importance_weight/mean": "mean"}, "before truncation"],
    ["Weights that the correction changed", {"importance_weight/out_of_band_share": "share of tokens"}],
    ["Dropped sequences", {"dropped_sequences": "sequences"}]]],
  ["Speed", [["Tokens per second", {"tokens_per_s": "generated"}]]],
];
const timeParts = ["rollout", "reward", "logprob", "train", "refit"];

function section(title) {
  const grid = make("div", {class: "charts"});
  const whole = make("section", {}, make("h2", {}, title), grid);
  content.append(whole);
  const close = () => {
    if (grid.constants) whole.append(make("p", {class: "note"}, `The same at every step: ${grid.constants.join(", ")}`));
    if (!grid.firstChild && !grid.constants) whole.remove();
  };
  return {grid, close};
}
function drawSections() {
  const charted = new Set(["step", "wall_s", "weight_version", "reward/std", "time/step_s"]);
  for (const part of timeParts) charted.add(`time/${part}_s`);
  for (const [title, charts] of sections) {
    const {grid, close} = section(title);
    if (title === "Rollout against trainer" && single) histogramChart(grid, single);
    for (const [name, keys, note] of charts) {
      Object.keys(keys).forEach(key => charted.add(key));
      if (single) {
        chart(grid, name, Object.entries(keys).map(([key, label], i) => (
          {name: label, color: color(i), points: ofRun(single, key, key === "reward/mean" ? "reward/std" : null)})), {note});
        continue;
      }
      const present = Object.entries(keys).filter(([key]) => groups.some(group => ofGroup(group, key).length > 0));
      for (const [key, label] of present)
        chart(grid, present.length > 1 ? `${name}: ${label}` : name,
          groups.map((group, i) => ({name: group.name, color: color(i), points: ofGroup(group, key)})),
          {note: key === "reward/mean" ? "" : note});
    }
    if (title === "Speed" && single) {
      chart(grid, "Time of a step", timeParts.map((part, i) => ({name: part, color: color(i), points: ofRun(single, `time/${part}_s`)})), {note: "seconds, stacked", stacked: true});
    } else if (title === "Speed") {
      for (const part of [...timeParts, "step"])
        chart(grid, `Time: ${part}`, groups.map((group, i) => ({name: group.name, color: color(i), points: ofGroup(group, `time/${part}_s`)})), {note: "seconds a step"});
    }
    close();
  }
  return charted;
}
function drawOthers(charted) {
  const others = section("Other metrics");
  const keys = new Set(groups.flatMap(g => g.runs.flatMap(r => r.metrics.flatMap(Object.keys))));
  for (const key of keys)
    if (!charted.has(key))
      chart(others.grid, key, groups.map((group, i) => ({name: single ? key : group.name, color: color(i), points: ofGroup(group, key)})));
  others.close();
}

// ---- Summary --------------------------------------------------------------------------------------------------
// A key may be broken after its separators, on narrow screens.
const breakable = key => key.split(/(?<=[/_.])/).flatMap(part => [part, make("wbr")]);
function tile(name, number, from) {
  document.getElementById("tiles").append(make("div", {class: "card tile"}, make("div", {class: "name"}, ...breakable(name)),
    make("div", {class: "number"}, number), make("div", {class: "from"}, from)));
}
function drawSummary() {
  const facts = document.getElementById("facts");
  if (!single) {
    facts.textContent = groups.map(g => `${g.name}: ${g.runs.length} run${g.runs.length > 1 ? "s" : ""}`).join(" · ");
    return;
  }
  const metrics = single.metrics, count = metrics.length, window = Math.max(1, Math.floor(count / 10));
  const mean = (key, lines) => {
    const values = lines.map(line => line[key]).filter(isNumber);
    return values.length ? values.reduce((a, b) => a + b) / values.length : null;
  };
  const first = metrics.slice(0, window), last = metrics.slice(-window);
  const setting = key => (single.recipe.match(new RegExp(`^ *${key}: *"?(.+?)"?$`, "m")) || [])[1];
  const precision = (single.recipe.match(/vllm_cfg:[\s\S]*?precision: *['"]?([\w-]+)/) || [])[1];
  facts.textContent = [`${metrics[count - 1].step} steps`, `${show((metrics[count - 1].wall_s || 0) / 60)} min`,
    setting("model_name"), precision && `rollouts in ${precision}`].filter(Boolean).join(" · ");
  const span = window > 1 ? `mean of the last ${window} steps` : "last step";
  for (const [name, key] of [["Reward", "reward/mean"], ["Accuracy", "accuracy"], ["Response length", "response_length/mean"],
    ["token_mult_prob_error", "token_mult_prob_error"], ["gen_kl_error", "gen_kl_error"], ["Tokens per second", "tokens_per_s"]])
    if (isNumber(mean(key, last))) tile(name, show(mean(key, last)), `${span}; at first ${show(mean(key, first))}`);
  const step = mean("time/step_s", metrics), refit = mean("time/refit_s", metrics);
  if (isNumber(step) && isNumber(refit)) tile("Refit", `${show(100 * refit / step)} %`, `of a step's ${show(step)} s`);
}

// ---- Comparison -----------------------------------------------------------------------------------------------
function table(head, rows) {
  return make("div", {class: "card scroll", tabindex: 0}, make("table", {},
    make("thead", {}, make("tr", {}, ...head.map(text => make("th", {scope: "col"}, text)))),
    make("tbody", {}, ...rows.map(cells => make("tr", {}, ...cells)))));
}
function rowHead(key) {
  return make("th", {scope: "row"}, ...breakable(key));
}
function drawComparison() {
  const c = data.comparison;
  if (!c) return;
  content.append(make("h2", {}, `Steps ${c.first_step} to ${c.last_step}`));
  let note = `± is the standard deviation over a group's runs, each by its mean over these steps. Below: the difference to ${groups[0].name}, ± its standard error.`;
  if (c.longest > c.last_step) note += ` Some runs ended at step ${c.last_step}, others went on to ${c.longest}; what all have is compared.`;
  content.append(make("p", {class: "note"}, note));
  const pm = (value, spread, sign) => `${sign && value > 0 ? "+" : ""}${show(value)}${isNumber(spread) ? ` ± ${show(Number(spread.toPrecision(2)))}` : ""}`;
  content.append(table(["", ...groups.map(g => `${g.name} (${g.runs.length})`)], c.metrics.map(metric => [
    rowHead(metric.key),
    ...metric.spreads.map((spread, i) => {
      const cell = make("td", {}, spread ? pm(spread.mean, spread.std) : "–");
      const difference = metric.differences[i];
      if (difference) cell.append(make("small", {}, pm(difference.mean, difference.error, true)));
      return cell;
    })])));
  if (c.recipe.length === 0) return;
  content.append(make("h2", {}, "Recipe keys that differ"));
  content.append(table(["", ...groups.map(g => g.name)], c.recipe.map(({key, values}) => [
    rowHead(key), ...values.map(value => make("td", {}, value || "–"))])));
}

// ---- Transcripts ----------------------------------------------------------------------------------------------
const fullScale = 0.5;  // |difference| of log-probabilities in full colour
function tokenText(tokens) {
  const text = make("div", {class: "text", tabindex: 0});
  for (const token of tokens) {
    const span = make("span", {}, token.text);
    if (isNumber(token.lp_gen) && isNumber(token.lp_train)) {
      const difference = token.lp_train - token.lp_gen;
      const strength = Math.min(1, Math.abs(difference) / fullScale);
      if (strength > 0.02) span.style.background = `rgba(var(--${difference < 0 ? "low" : "high"}), ${(0.75 * strength).toFixed(3)})`;
      span.title = `log p: rollout ${show(token.lp_gen)}, trainer ${show(token.lp_train)}, difference ${show(difference)}`;
    }
    text.append(span);
  }
  return text;
}
function drawSamples() {
  const runs = groups.flatMap(g => g.runs).filter(run => run.samples.length > 0);
  if (runs.length === 0) return;
  const runSelect = make("select", {"aria-label": "Run"}, ...runs.map((run, i) => make("option", {value: i}, run.name)));
  const stepSelect = make("select", {"aria-label": "Step"});
  const orderSelect = make("select", {"aria-label": "Order"}, ...[["", "as generated"], ["reward", "highest reward first"], ["-reward", "lowest reward first"], ["mismatch", "largest mismatch first"]]
    .map(([value, text]) => make("option", {value}, text)));
  const list = make("div", {});
  content.append(make("section", {}, make("h2", {}, "Transcripts"),
    make("div", {class: "controls"}, ...(runs.length > 1 ? [runSelect] : []), make("label", {}, "Step ", stepSelect), make("label", {}, "Order ", orderSelect),
      make("span", {class: "note"}, "trainer less sure ", make("span", {class: "scale"}), ` more sure than the rollout (full colour: ${fullScale} nats)`)), list));
  const mismatch = sample => {
    const differences = sample.tokens.filter(t => isNumber(t.lp_train)).map(t => Math.abs(t.lp_train - t.lp_gen));
    return differences.length ? Math.max(...differences) : 0;
  };
  function steps() {
    const all = [...new Set(runs[runSelect.value].samples.map(s => s.step))];
    stepSelect.replaceChildren(...all.map(step => make("option", {value: step}, step)));
    stepSelect.value = all[all.length - 1];
    paint();
  }
  function paint() {
    const samples = runs[runSelect.value].samples.filter(s => s.step === Number(stepSelect.value));
    const order = {"reward": (a, b) => b.reward - a.reward, "-reward": (a, b) => a.reward - b.reward, "mismatch": (a, b) => mismatch(b) - mismatch(a)}[orderSelect.value];
    if (order) samples.sort(order);
    list.replaceChildren(...samples.map(sample => make("article", {class: "card sample"},
      make("div", {class: "meta"}, ...[`#${sample.id}`, `reward ${show(sample.reward)}`, `expected ${sample.answer || "–"}`, `${sample.tokens.length} tokens, ended by ${sample.finish_reason}`,
        `largest mismatch ${show(mismatch(sample))}`].map(text => make("span", {}, text))),
      make("div", {class: "text prompt", tabindex: 0}, sample.prompt),
      sample.tokens.length ? tokenText(sample.tokens) : make("div", {class: "text"}, sample.completion))));
  }
  runSelect.addEventListener("change", steps);
  stepSelect.addEventListener("change", paint);
  orderSelect.addEventListener("change", paint);
  steps();
}

drawSummary();
drawComparison();
const charted = drawSections();
drawSamples();
drawOthers(charted);
for (const run of groups.flatMap(g => g.runs))
  content.append(make("details", {class: "card", style: "margin-top:14px"}, make("summary", {}, `Recipe of ${run.name}`), make("pre", {}, run.recipe)));
