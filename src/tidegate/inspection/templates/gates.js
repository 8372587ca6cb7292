"use strict";
// Draws the page from the numbers in it. Every name that comes from a table is put in as text, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const MAPS = [
    ["z", "update", "update gate z", "0 writes anew", "1 keeps"],
    ["r", "reset", "reset gate r", "0 ignores h", "1 sees it"],
    ["n", "candidate", "candidate n", "-1", "1"],
    ["h", "hidden", "state h", "-1", "1"],
  ];
  const FEW_COLUMNS = 8; // input columns drawn before "more" is pressed

  // --- small things --------------------------------------------------------------------------------------------

  const sigma = (v) => 1 / (1 + Math.exp(-v));
  const clamp = (v, low, high) => Math.min(high, Math.max(low, v));
  const fixed = (v, digits = 3) => (Object.is(Math.round(v * 10 ** digits), -0) ? 0 : v).toFixed(digits).replace("-", "−");
  const plain = (v) => (v === null || v === undefined ? "missing" : typeof v === "number" ? String(+v.toPrecision(5)).replace("-", "−") : String(v));
  const percent = (v) => (v > 0 && v < 0.005 ? "<1 %" : `${Math.round(100 * v)} %`);
  const memory = (v, longest) => (v === null ? `over ${longest}` : v.toLocaleString("en"));

  function make(tag, attributes = {}, ...children) {
    const out = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "text") out.textContent = value;
      else if (name.startsWith("on")) out.addEventListener(name.slice(2), value);
      else if (value !== false && value !== null) out.setAttribute(name, value);
    }
    out.append(...children);
    return out;
  }

  function svg(tag, attributes = {}, text) {
    const out = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) out.setAttribute(name, value);
    if (text !== undefined) out.textContent = text;
    return out;
  }

  /** A word with its definition, shown on hover and on focus. */
  function term(text, definition) {
    return make("span", { class: "term", tabindex: "0", text, "data-note": definition, "aria-description": definition });
  }

  function bytes(text) {
    const raw = atob(text), out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out;
  }

  function shorts(text) { // little-endian, as they were written, on any machine
    const raw = new DataView(bytes(text).buffer), out = new Int16Array(raw.byteLength / 2);
    for (let i = 0; i < out.length; i++) out[i] = raw.getInt16(2 * i, true);
    return out;
  }

  // --- colours -------------------------------------------------------------------------------------------------

  const hex = (c) => [1, 3, 5].map((i) => parseInt(c.slice(i, i + 2), 16));
  const VIRIDIS = ["#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725"].map(hex); // 0 to 1, matplotlib's (CC0)
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const diverging = () => [hex("#2166ac"), hex("#67a9cf"), dark.matches ? hex("#20272c") : hex("#f7f7f7"), hex("#ef8a62"), hex("#b2182b")];

  function palette(stops) { // 256 colours
    const out = new Uint8ClampedArray(256 * 4);
    for (let i = 0; i < 256; i++) {
      const at = (i / 255) * (stops.length - 1), k = Math.min(Math.floor(at), stops.length - 2), f = at - k;
      for (let c = 0; c < 3; c++) out[4 * i + c] = stops[k][c] * (1 - f) + stops[k + 1][c] * f;
      out[4 * i + 3] = 255;
    }
    return out;
  }

  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  /** A hue for a category that is the same wherever its name occurs. */
  function hue(text) {
    let sum = 7;
    for (const letter of String(text)) sum = (sum * 31 + letter.codePointAt(0)) % 3600;
    return sum / 10;
  }

  // --- the numbers of one layer and direction ------------------------------------------------------------------

  class Layer {
    constructor(raw, steps) {
      Object.assign(this, raw);
      this.P = steps;
      this.place = new Map(raw.order.map((unit, row) => [unit, row]));
      this.decoded = {};
      for (const [name, field] of Object.entries(raw.fields)) this.decoded[name] = shorts(field.values);
    }
    field(name, u, p) { return this.decoded[name][u * this.P + p] * this.fields[name].scale[u]; }
    z(u, p) { return sigma(this.field("sum_z", u, p)); }
    r(u, p) { return sigma(this.field("sum_r", u, p)); }
    n(u, p) { return Math.tanh(this.field("input_n", u, p) + this.r(u, p) * this.field("state_n", u, p)); }
    h(u, p) { return this.field("h", u, p); }
    before(u, p) {
      if (this.fields.before) return this.field("before", u, p);
      const q = this.reverse ? p + 1 : p - 1;
      return q < 0 || q >= this.P ? this.edge[u] : this.h(u, q);
    }
    mean(which, p) {
      let sum = 0;
      for (let u = 0; u < this.units; u++) sum += this[which](u, p);
      return sum / this.units;
    }
    /** The step that changes the state most: where a reader should begin. */
    liveliest() {
      let best = 0, most = -1;
      for (let p = 0; p < this.P; p++) {
        let moved = 0;
        for (let u = 0; u < this.units; u++) moved += Math.abs(this.h(u, p) - this.before(u, p));
        if (moved > most) [best, most] = [p, moved];
      }
      return best;
    }
  }

  // --- one run -------------------------------------------------------------------------------------------------

  class View {
    constructor(root, raw, shared) {
      this.raw = raw;
      this.root = root;
      this.shared = shared;
      this.P = raw.steps.length;
      this.layers = raw.layers.map((layer) => new Layer(layer, this.P));
      this.lean = bytes(raw.lean.rows);
      this.layer = this.layers[0];
      this.p = 0;
      this.allColumns = raw.columns.length <= FEW_COLUMNS;
      this.sorted = "memory";
      this.root.append(this.bar(), (this.said = make("div", { class: "said" })), this.body());
      this.unit = this.firstUnit();
    }

    firstUnit() {
      const kinds = this.layer.statistics.kind;
      return this.layer.order.find((u) => kinds[u] !== "still") ?? this.layer.order[0];
    }

    /** The name of a step for people: its number, its time, its word. */
    stepName(p) {
      const words = this.raw.columns.find((c) => c.kind === "words");
      const parts = [`step ${this.raw.steps[p].toLocaleString("en")} of ${this.raw.length.toLocaleString("en")}`];
      if (words) parts.push(`“${plain(words.values[p])}”`);
      else if (this.raw.times) parts.push(this.raw.times[p]);
      return parts.join(": ");
    }

    // --- what is built once

    bar() {
      const option = (value, text) => make("option", { value, text });
      this.layerChoice = make("select", { onchange: () => this.setLayer(+this.layerChoice.value) });
      this.layers.forEach((layer, k) => this.layerChoice.append(option(k, `${layer.title} (${layer.name})`)));
      this.unitChoice = make("select", { onchange: () => this.shared.draw(this, () => (this.unit = +this.unitChoice.value)) });
      return make("div", { class: "bar" }, make("label", {}, "Layer ", this.layerChoice), make("label", {}, "Unit ", this.unitChoice));
    }

    body() {
      this.tracks = make("div", { class: "tracks" });
      this.cursor = make("div", { class: "cursor" });
      this.slider = make("input", {
        type: "range", min: 0, max: this.P - 1, step: 1, "aria-label": "step",
        oninput: () => this.shared.go(this, +this.slider.value),
      });
      this.clock = make("output", {});
      this.below = make("div");
      this.panel = make("aside", { class: "panel", "aria-label": "this step" });
      const grab = (event) => {
        if (event.buttons !== 1) return;
        const box = this.plotBox();
        const p = clamp(Math.floor(((event.clientX - box.left) / box.width) * this.P), 0, this.P - 1);
        const map = event.target.closest?.(".map canvas");
        let unit = this.unit;
        if (map && event.type === "pointerdown") {
          const area = map.getBoundingClientRect();
          unit = this.layer.order[clamp(Math.floor(((event.clientY - area.top) / area.height) * this.layer.units), 0, this.layer.units - 1)];
        }
        this.unit = unit;
        this.shared.go(this, p);
      };
      this.tracks.addEventListener("pointerdown", (event) => {
        if (event.target.closest(".label, .more")) return;
        this.tracks.setPointerCapture(event.pointerId);
        this.dragged = true;
        grab(event);
      });
      this.tracks.addEventListener("pointermove", (event) => { if (this.dragged) grab(event); });
      for (const end of ["pointerup", "pointercancel"]) this.tracks.addEventListener(end, () => (this.dragged = false));
      const left = make("div", {}, this.tracks, make("div", { class: "time" }, this.clock, this.slider), this.below);
      return make("div", { class: "body" }, left, this.panel);
    }

    plotBox() { return this.tracks.querySelector("canvas").getBoundingClientRect(); }

    row(label, kind, height, draw, ...more) {
      const canvas = make("canvas", { "aria-hidden": "true" });
      canvas.style.height = `${height}px`;
      const text = make("div", { class: "label" });
      text.append(...label);
      const row = make("div", { class: `row ${kind}` }, text, make("div", { class: "plot" }, canvas, ...more));
      this.tracks.append(row);
      this.painters.push(() => draw(canvas));
      if (kind === "leans") this.leaning.push(this.painters.at(-1));
      return row;
    }

    /** All rows anew: after another layer, another size or another colour scheme. */
    build() {
      this.tracks.replaceChildren();
      this.painters = [];
      this.leaning = [];
      this.leaned = null;
      const { raw } = this;
      const shown = this.allColumns ? raw.columns : raw.columns.slice(0, FEW_COLUMNS);
      for (const column of shown) {
        if (column.kind === "number") this.row([column.name], "", 34, (canvas) => this.drawLines(canvas, [column.values], column));
        else {
          const leaning = column.kind === "words" && this.P <= 60; // its cells are wide enough to be shaded
          this.row([column.name], leaning ? "leans" : "", 24, (canvas) => this.drawWords(canvas, column.values, { leaning }));
        }
      }
      if (raw.columns.length > FEW_COLUMNS) {
        const text = this.allColumns ? "fewer columns" : `${raw.columns.length - FEW_COLUMNS} more columns`;
        const press = () => { this.allColumns = !this.allColumns; this.build(); this.update(); };
        this.tracks.append(make("div", { class: "more" }, make("button", { type: "button", text, onclick: press })));
      }
      this.row([term(raw.per === "sequence" ? "the prediction leans on" : "leans on", data.definitions.lean)], "leans", 14, (canvas) => this.drawLean(canvas));
      this.tracks.append(make("div", { class: "gap" }));
      if (raw.per !== "sequence") for (const output of raw.outputs) this.outputRows(output);
      this.tracks.append(make("div", { class: "gap" }));
      for (const [which, name, title, low, high] of MAPS) {
        const mark = make("div", { class: "mark" });
        const signed = which === "n" || which === "h";
        const colours = palette(signed ? diverging() : VIRIDIS);
        const swatch = (i) => { const s = make("i"); s.style.background = `rgb(${colours.slice(4 * i, 4 * i + 3).join(",")})`; return s; };
        const key = make("span", { class: "key" }, make("span", {}, swatch(0), low), " ", make("span", {}, swatch(255), high));
        const height = clamp(this.layer.units * 3, 60, 132);
        const row = this.row([term(title, data.definitions[name]), key], "map tall", height, (canvas) => this.drawMap(canvas, which, colours, signed), mark);
        row.mark = mark;
      }
      this.unitRow = this.row(["…"], "tall", 84, (canvas) => this.drawUnit(canvas));
      this.tracks.append(this.cursor);
      this.below.replaceChildren(...this.unitsBelow());
      this.said.replaceChildren(...this.layer.sentences.map(([text, definition]) => make("p", {}, term(text, definition))));
      const name = (u) => `${u}: ${this.layer.statistics.kind[u]}, remembers ${memory(this.layer.statistics.memory_length_steps[u], this.layer.longest)} steps`;
      this.unitChoice.replaceChildren(...this.layer.order.map((u) => make("option", { value: u, text: name(u) })));
      this.layerChoice.value = this.layers.indexOf(this.layer);
      this.paint();
    }

    paint() { for (const painter of this.painters) painter(); }

    outputRows(output) {
      const names = this.raw.outputs.length > 1 ? `: ${output.name}` : "";
      if (output.kind === "number") {
        const first = (v) => (v === null ? null : Array.isArray(v) ? v[0] : v);
        const lines = [output.values.map(first)];
        if (output.truth) lines.push(output.truth.map(first));
        const key = make("span", { class: "key", text: output.truth ? "line: predicted, dots: true" : "predicted" });
        const ahead = this.raw.horizon ? (this.raw.horizon > 1 ? ", 1 step ahead" : ", the next step") : "";
        this.row([`${output.name}${ahead}`, key], "", 48, (canvas) => this.drawLines(canvas, lines, {}, output));
        return;
      }
      const wrong = output.truth && output.values.map((v, p) => output.truth[p] !== null && output.truth[p] !== v);
      this.row([`prediction${names}`], "", 24, (canvas) => this.drawWords(canvas, output.values, { hues: true, wrong }));
      if (output.truth) this.row([`true${names}`], "", 24, (canvas) => this.drawWords(canvas, output.truth, { hues: true }));
    }

    unitsBelow() {
      const { layer } = this, s = layer.statistics;
      const edges = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000].filter((e, i, all) => i < 3 || all[i - 1] < layer.longest);
      const counts = new Array(edges.length + 1).fill(0);
      for (const m of s.memory_length_steps) {
        const k = m === null ? edges.length : edges.findIndex((e) => m <= e);
        counts[k < 0 ? edges.length : k]++;
      }
      const most = Math.max(...counts), used = counts.findLastIndex((count) => count > 0);
      const bars = counts.slice(0, Math.max(used, 2) + 1).map((count, k) => {
        const low = k ? edges[k - 1] + 1 : 1;
        const label = k === edges.length ? "longer" : low >= edges[k] ? `${edges[k]}` : `${low}–${edges[k]}`;
        const bar = make("i");
        bar.style.height = `${(60 * count) / most}%`;
        return make("div", { title: `${count} units` }, make("span", { text: count || "" }), bar, make("span", { text: label }));
      });
      const columns = [
        ["unit", "unit", (u) => u, (u) => u],
        ["memory", "memory (steps)", (u) => memory(s.memory_length_steps[u], layer.longest), (u) => -(s.memory_length_steps[u] ?? Infinity)],
        ["keeps", "z open", (u) => percent(s.update_near_1[u]), (u) => -s.update_near_1[u]],
        ["writes", "z shut", (u) => percent(s.update_near_0[u]), (u) => -s.update_near_0[u]],
        ["sees", "r open", (u) => percent(s.reset_near_1[u]), (u) => -s.reset_near_1[u]],
        ["ignores", "r shut", (u) => percent(s.reset_near_0[u]), (u) => -s.reset_near_0[u]],
        ["range", "range of h", (u) => `${fixed(s.low[u], 2)} to ${fixed(s.high[u], 2)}`, (u) => s.low[u] - s.high[u]],
        ["kind", "", (u) => s.kind[u], (u) => s.kind[u]],
      ];
      const body = make("tbody");
      const fill = () => {
        const by = columns.find(([id]) => id === this.sorted)[3];
        const units = [...layer.order].sort((a, b) => (by(a) < by(b) ? -1 : by(a) > by(b) ? 1 : 0));
        this.unitRows = new Map();
        body.replaceChildren(
          ...units.map((u) => {
            const row = make("tr", { onclick: () => this.shared.draw(this, () => (this.unit = u)) });
            row.append(...columns.map(([, , text]) => make("td", { text: text(u) })));
            this.unitRows.set(u, row);
            return row;
          }),
        );
        this.unitRows.get(this.unit)?.classList.add("chosen");
      };
      const heads = columns.map(([id, title]) =>
        make("th", { scope: "col" }, make("button", {
          type: "button", text: title || "kind", "aria-sort": id === this.sorted ? "other" : null,
          onclick: (event) => {
            this.sorted = id;
            for (const b of event.target.closest("tr").querySelectorAll("button")) b.removeAttribute("aria-sort");
            event.target.setAttribute("aria-sort", "other");
            fill();
          },
        })),
      );
      fill();
      return [
        make("h3", {}, term("How long the units remember", data.definitions.memory), make("span", { class: "soft", text: " (units by memory length in steps)" })),
        make("div", { class: "histogram" }, ...bars),
        make("h3", {}, "The units of this layer", make("span", { class: "soft" }, ", share of steps with a gate ", term("open or shut", data.definitions.saturated))),
        make("div", { class: "units", tabindex: "0", role: "region", "aria-label": "table of units" }, make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body)),
      ];
    }

    // --- pictures

    context(canvas) {
      const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
      canvas.width = Math.max(1, Math.round(width * ratio));
      canvas.height = Math.max(1, Math.round(height * ratio));
      const c = canvas.getContext("2d");
      c.scale(ratio, ratio);
      return [c, width, height];
    }

    drawMap(canvas, which, colours, signed) {
      const { layer, P } = this, H = layer.units;
      canvas.width = P;
      canvas.height = H;
      // Fewer pixels than units: let the browser average them, else show every cell as it is.
      canvas.style.imageRendering = H > canvas.clientHeight || P > canvas.clientWidth ? "auto" : "pixelated";
      const c = canvas.getContext("2d"), image = c.createImageData(P, H);
      let bound = 1;
      if (signed) for (let u = 0; u < H; u++) for (let p = 0; p < P; p++) bound = Math.max(bound, Math.abs(layer[which](u, p)));
      for (let row = 0; row < H; row++) {
        const u = layer.order[row];
        for (let p = 0; p < P; p++) {
          const v = layer[which](u, p), i = Math.round(255 * clamp(signed ? (v / bound + 1) / 2 : v, 0, 1));
          image.data.set(colours.subarray(4 * i, 4 * i + 4), 4 * (row * P + p));
        }
      }
      c.putImageData(image, 0, 0);
    }

    drawLines(canvas, lines, { low, high } = {}) {
      const [c, width, height] = this.context(canvas), { P } = this;
      const numbers = [...lines.flat(), ...(low ?? []), ...(high ?? [])].filter((v) => v !== null);
      const bottom = Math.min(...numbers), top = Math.max(...numbers), span = top - bottom || 1;
      const x = (p) => ((p + 0.5) * width) / P, y = (v) => height - 3 - ((height - 6) * (v - bottom)) / span;
      if (low) {
        c.strokeStyle = style("--line");
        c.lineWidth = Math.max(1, width / P);
        c.beginPath();
        low.forEach((v, p) => { if (v !== null) { c.moveTo(x(p), y(v) + 0.5); c.lineTo(x(p), y(high[p]) - 0.5); } });
        c.stroke();
      }
      const [first, second] = lines;
      c.strokeStyle = style("--strong");
      c.lineWidth = 1.4;
      c.beginPath();
      let down = false;
      first.forEach((v, p) => {
        if (v === null) down = false;
        else { if (down) c.lineTo(x(p), y(v)); else c.moveTo(x(p), y(v)); down = true; }
      });
      c.stroke();
      if (second) {
        c.fillStyle = style("--warm");
        second.forEach((v, p) => { if (v !== null) { c.beginPath(); c.arc(x(p), y(v), clamp(width / P / 3, 1, 2.4), 0, 7); c.fill(); } });
      }
      c.fillStyle = style("--soft");
      c.strokeStyle = style("--wash");
      c.lineWidth = 3;
      c.font = "10px system-ui, sans-serif";
      if (numbers.length) for (const [v, at] of [[top, 10], [bottom, height - 2]]) {
        c.strokeText(plain(v), 2, at); // a rim, so that the line behind doesn't cross the digits
        c.fillText(plain(v), 2, at);
      }
    }

    /** Cells with text; neighbours that are equal share one where the steps are too narrow for text each. */
    drawWords(canvas, values, { hues = false, wrong = null, leaning = false } = {}) {
      const [c, width, height] = this.context(canvas), { P } = this, cell = width / P;
      c.font = "12px system-ui, sans-serif";
      c.textBaseline = "middle";
      const merge = cell < 40;
      for (let p = 0; p < P; ) {
        let end = p + 1;
        while (merge && end < P && values[end] === values[p]) end++;
        const left = p * cell, room = (end - p) * cell;
        const text = values[p] === null ? "–" : String(values[p]);
        if (hues && values[p] !== null) {
          const quiet = text === "O" || text === "0" || text === "false";
          c.fillStyle = quiet ? style("--line") : `hsl(${hue(text)} ${dark.matches ? "45% 32%" : "55% 82%"})`;
          c.fillRect(left, 0, room - (merge ? 0 : 1), height);
        } else if (leaning) {
          c.fillStyle = style("--warm");
          c.globalAlpha = 0.75 * this.leanAt(p);
          c.fillRect(left, 0, room - 1, height);
          c.globalAlpha = 1;
        } else if (!merge) {
          c.fillStyle = style("--line");
          c.fillRect(left + room - 1, 4, 1, height - 8);
        }
        c.fillStyle = style("--ink");
        let short = text;
        while (short && c.measureText(short).width > room - 4) short = short.length > 2 ? `${short.slice(0, -2)}…` : "";
        if (short && short !== "…") c.fillText(short, left + Math.max(2, (room - c.measureText(short).width) / 2), height / 2 + 0.5);
        p = end;
      }
      if (wrong) {
        c.fillStyle = style("--bad");
        wrong.forEach((bad, p) => { if (bad) c.fillRect(p * cell, height - 3, Math.max(1, cell - 1), 3); });
      }
    }

    leanAt(p) { return this.lean[(this.raw.per === "sequence" ? 0 : this.p * this.P) + p] / 255; }

    drawLean(canvas) {
      const [c, width, height] = this.context(canvas), cell = width / this.P;
      c.fillStyle = style("--warm");
      for (let p = 0; p < this.P; p++) {
        c.globalAlpha = this.leanAt(p);
        c.fillRect(p * cell, 0, Math.max(1, cell - (cell > 6 ? 1 : 0)), height);
      }
    }

    drawUnit(canvas) {
      const [c, width, height] = this.context(canvas), { layer, unit, P } = this;
      const x = (p) => ((p + 0.5) * width) / P;
      const bound = Math.max(1, ...Array.from({ length: P }, (_, p) => Math.abs(layer.h(unit, p))));
      const y = (v) => height / 2 - (v / bound) * (height / 2 - 3);
      c.strokeStyle = style("--line");
      c.beginPath();
      c.moveTo(0, y(0));
      c.lineTo(width, y(0));
      c.stroke();
      for (const [which, colour, dash, thick] of [["z", "--warm", [], 1.4], ["r", "--soft", [2, 3], 1.2], ["n", "--good", [6, 3], 1.2], ["h", "--strong", [], 2.2]]) {
        c.strokeStyle = style(colour);
        c.setLineDash(dash);
        c.lineWidth = thick;
        c.beginPath();
        for (let p = 0; p < P; p++) c[p ? "lineTo" : "moveTo"](x(p), y(layer[which](unit, p)));
        c.stroke();
      }
    }

    // --- what changes with the step and the unit

    update() {
      const { layer, unit, p, raw } = this;
      const box = this.plotBox(), outer = this.tracks.getBoundingClientRect(), cell = box.width / this.P;
      this.cursor.style.left = `${box.left - outer.left + p * cell}px`;
      this.cursor.style.width = `${cell}px`;
      this.slider.value = p;
      this.slider.setAttribute("aria-valuetext", this.stepName(p));
      this.clock.textContent = `step ${raw.steps[p].toLocaleString("en")}`;
      this.unitChoice.value = unit;
      for (const row of this.tracks.querySelectorAll(".map"))
        row.mark.style.top = `${((layer.place.get(unit) + 0.5) / layer.units) * row.querySelector("canvas").clientHeight}px`;
      const key = make("span", { class: "key" });
      for (const [colour, text] of [["--strong", "h"], ["--warm", "z"], ["--soft", "r ⋯"], ["--good", "n - -"]]) {
        const s = make("i");
        s.style.background = style(colour);
        key.append(s, `${text} `);
      }
      this.unitRow.querySelector(".label").replaceChildren(`unit ${unit}`, key);
      this.drawUnit(this.unitRow.querySelector("canvas"));
      this.leanAgain();
      this.root.querySelector("tr.chosen")?.classList.remove("chosen");
      const chosen = this.unitRows.get(unit);
      chosen?.classList.add("chosen");
      this.showPanel();
    }

    /** Draw the strips that show what the prediction under the cursor leans on, and no others. */
    leanAgain() {
      if (this.leaned === this.p || this.raw.per === "sequence") return;
      this.leaned = this.p;
      for (const painter of this.leaning) painter();
    }

    showPanel() {
      const { layer, unit, p, raw } = this;
      const title = make("h3", { class: "now", "aria-live": "polite", text: this.stepName(p) });
      const parts = [title, this.factsTable(), make("h3", { text: `Unit ${unit} at this step` }), this.cell()];
      parts.push(this.equations());
      const m = layer.statistics.memory_length_steps[unit];
      const told = m === null ? `It holds on longer than can be seen in sequences of at most ${layer.longest.toLocaleString("en")} steps.` : m <= 1 ? "Half of what it holds is gone a step later: it follows the input." : `Half of what it holds is forgotten after ${memory(m)} steps.`;
      parts.push(make("p", { class: "soft" }, told, ` On average over all ${layer.units} units, at this step: z ${fixed(layer.mean("z", p), 2)}, r ${fixed(layer.mean("r", p), 2)}.`));
      this.panel.replaceChildren(...parts);
    }

    factsTable() {
      const { p, raw } = this, table = make("table", { class: "facts" });
      const line = (name, ...cells) => table.append(make("tr", {}, make("th", { scope: "row", text: name }), make("td", {}, ...cells)));
      const once = raw.per === "sequence", at = once ? 0 : p;
      raw.columns.slice(0, this.allColumns ? raw.columns.length : FEW_COLUMNS).forEach((column) => {
        const unknown = column.unknown?.includes(p) ? " (not in the vocabulary: read as unknown)" : "";
        line(column.name, plain(column.values[p]) + unknown);
      });
      for (const output of raw.outputs) {
        const name = `prediction${raw.outputs.length > 1 ? ` of ${output.name}` : ""}${once ? " (of the whole sequence)" : ""}`;
        const guess = output.values[at], truth = output.truth?.[at];
        if (output.kind === "number") {
          const list = (v) => (Array.isArray(v) ? v.slice(0, 6).map(plain).join(", ") + (v.length > 6 ? ", …" : "") : plain(v));
          line(name, list(guess));
          if (output.truth) line("true", list(truth));
          continue;
        }
        const cells = [];
        if (output.top) output.top[at].forEach(([text, share], k) => {
          const meter = make("span", { class: "meter" });
          meter.style.width = `${Math.max(1, 60 * share)}px`;
          cells.push(make("div", { class: k ? "soft" : "" }, meter, ` ${plain(text)} ${percent(share)}`));
        });
        else cells.push(`${plain(guess)} (1 with ${percent(output.probability[at])})`);
        line(name, ...cells);
        if (output.truth) {
          const right = truth === guess;
          line("true", truth === null ? "not known" : make("span", { class: right ? "right" : "wrong", text: `${plain(truth)} ${right ? "✓" : "✗"}` }));
        }
      }
      if (raw.columns.length > 1) {
        const shares = raw.lean.columns[at].map((share, k) => [share, raw.columns[k].name]).sort((a, b) => b[0] - a[0]);
        const cells = shares.slice(0, 4).map(([share, name]) => make("div", {}, `${name} ${percent(share)}`));
        const row = make("tr", {}, make("th", { scope: "row" }, term("leans on", data.definitions.lean)), make("td", {}, ...cells));
        table.append(row);
      }
      return table;
    }

    /** The cell as a picture: who sends what to whom, as strongly as this unit does at this step. */
    cell() {
      const { layer, unit, p, raw } = this;
      const z = layer.z(unit, p), r = layer.r(unit, p), n = layer.n(unit, p), h = layer.h(unit, p), before = layer.before(unit, p);
      const words = raw.columns.find((c) => c.kind === "words");
      const input = layer.name.startsWith("l0") ? (words ? plain(words.values[p]) : `${raw.columns.length} input${raw.columns.length > 1 ? "s" : ""}`) : "the layer below";
      const out = svg("svg", { viewBox: "0 -16 432 272", class: "cell", role: "img" });
      out.append(svg("title", {}, `Unit ${unit}: reset gate ${fixed(r)}, update gate ${fixed(z)}, candidate ${fixed(n)}, old state ${fixed(before)}, new state ${fixed(h)}`));
      const marker = svg("defs");
      for (const [id, colour] of [["tip", "--soft"], ["tip-flow", "--strong"], ["tip-keep", "--warm"]]) {
        const m = svg("marker", { id, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 8, markerHeight: 8, markerUnits: "userSpaceOnUse", orient: "auto" });
        m.append(svg("path", { d: "M0,0 L8,4 L0,8 z", style: `fill: var(${colour}); stroke: none` }));
        marker.append(m);
      }
      out.append(marker);
      const edge = (d, share, kind = "") => out.append(svg("path", { d, class: kind, "stroke-width": (0.8 + 6 * share).toFixed(2), "marker-end": `url(#tip${kind ? `-${kind}` : ""})` }));
      edge("M92,214 C130,214 120,92 164,92", 0.1); //            X to Z
      edge("M92,220 C130,220 130,168 164,168", 0.1); //          X to R
      edge("M92,232 L234,232", 0.1); //                          X to C
      edge("M92,46 C125,46 125,84 164,84", 0.1); //              h to Z
      edge("M92,52 C128,52 124,156 164,156", 0.1); //            h to R
      edge("M206,186 C206,208 214,219 234,219", r, "flow"); //   R into C
      edge("M276,204 C276,150 320,128 340,128", 1 - z, "flow"); // C into H
      edge("M248,88 C300,88 310,112 340,114", 0.1); //           Z into H
      edge("M92,36 C220,4 380,10 384,92", z, "keep"); //         the old state into the new one
      const node = (x, y, name, value, kind, title) => {
        const g = svg("g", { class: kind, transform: `translate(${x},${y})` });
        g.append(svg("title", {}, title), svg("rect", { width: 84, height: 46, rx: 8 }), svg("text", { x: 42, y: 15, class: "small" }, name), svg("text", { x: 42, y: 36, class: "value" }, value));
        g.querySelector("rect").dataset.value = value;
        out.append(g);
      };
      const shorten = (text) => (text.length > 10 ? `${text.slice(0, 9)}…` : text);
      node(8, 22, "old state h", fixed(before), "state", data.definitions.hidden);
      node(8, 204, "input x", shorten(input), "input", input);
      node(164, 66, "update gate z", fixed(z), "gate update", data.definitions.update);
      node(164, 140, "reset gate r", fixed(r), "gate reset", data.definitions.reset);
      node(234, 204, "candidate n", fixed(n), "candidate", data.definitions.candidate);
      node(340, 94, "new state h′", fixed(h), "state new", data.definitions.hidden);
      const label = (x, y, text, anchor) => out.append(svg("text", { x, y, class: "edge", style: `text-anchor: ${anchor}` }, text));
      label(262, 0, `keeps ${percent(z)}`, "middle");
      label(304, 178, `writes ${percent(1 - z)}`, "start");
      label(200, 206, `lets ${percent(r)} through`, "end");
      return out;
    }

    equations() {
      const { layer, unit: u, p } = this;
      const f = (v) => fixed(v), signed = (v) => (v < 0 ? `− ${fixed(-v)}` : `+ ${fixed(v)}`);
      const input = (g) => layer.field(`input_${g}`, u, p), state = (g) => layer.field(`sum_${g}`, u, p) - input(g);
      const z = layer.z(u, p), r = layer.r(u, p), n = layer.n(u, p), h = layer.h(u, p), before = layer.before(u, p);
      const inside = layer.field("state_n", u, p), bracket = (v) => (v < 0 ? `(${fixed(v)})` : fixed(v));
      const out = make("div", { class: "equation", tabindex: "0", role: "group", "aria-label": `the equations of unit ${u} with its numbers` });
      const line = (left, symbols, numbers, value) => out.append(make("span", { class: "in", text: `${left.padEnd(2)} = ${symbols}\n` }), `   = ${numbers} = `, make("b", { text: value }), "\n");
      line("r", "σ(W_ir x + b_ir + W_hr h + b_hr)", `σ(${f(input("r"))} ${signed(state("r"))})`, f(r));
      line("z", "σ(W_iz x + b_iz + W_hz h + b_hz)", `σ(${f(input("z"))} ${signed(state("z"))})`, f(z));
      line("n", "tanh(W_in x + b_in + r·(W_hn h + b_hn))", `tanh(${f(input("n"))} + ${f(r)}·${bracket(inside)})`, f(n));
      line("h′", "(1 − z)·n + z·h", `${f(1 - z)}·${bracket(n)} + ${f(z)}·${bracket(before)}`, f(h));
      out.lastChild.remove();
      return out;
    }

    setLayer(k) {
      this.layer = this.layers[k];
      this.unit = this.firstUnit();
      this.build();
      this.update();
    }
  }

  // --- all runs on the page ------------------------------------------------------------------------------------

  const shared = {
    views: [],
    /** To the step p of one view, and to the nearest one in the others. */
    go(view, p) {
      const step = view.raw.steps[clamp(p, 0, view.P - 1)];
      for (const other of this.views) {
        let best = 0;
        other.raw.steps.forEach((s, k) => { if (Math.abs(s - step) < Math.abs(other.raw.steps[best] - step)) best = k; });
        other.p = best;
        other.update();
      }
    },
    draw(view, change) { change(); view.update(); },
  };
  const sections = document.querySelectorAll("section.view");
  shared.views = data.views.map((raw, k) => new View(sections[k], raw, shared));
  for (const view of shared.views) view.build();
  const begin = shared.views[0];

  /** #step=12&unit=3&layer=l0_reverse in the address leads there. */
  function follow() {
    const asked = new URLSearchParams(location.hash.slice(1));
    const layer = begin.layers.findIndex((l) => l.name === asked.get("layer"));
    if (layer >= 0) begin.setLayer(layer);
    if (asked.has("unit") && begin.layer.place.has(+asked.get("unit"))) begin.unit = +asked.get("unit");
    const step = asked.has("step") ? begin.raw.steps.findIndex((s) => s >= +asked.get("step")) : begin.layer.liveliest();
    shared.go(begin, step < 0 ? begin.P - 1 : step);
  }
  follow();
  addEventListener("hashchange", follow);

  const repaint = () => { for (const view of shared.views) { view.build(); view.update(); } };
  dark.addEventListener("change", repaint);
  let waiting = 0;
  addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(repaint, 120); });

  let active = begin; // the view that the keys move: the one last touched
  shared.views.forEach((view, k) => sections[k].addEventListener("pointerdown", () => (active = view), true));
  shared.views.forEach((view, k) => sections[k].addEventListener("focusin", () => (active = view)));
  addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest?.("select, input, .units, .equation")) {
      if (!event.target.matches?.("input[type=range]") || !["ArrowUp", "ArrowDown", "l", "L"].includes(event.key)) return;
    }
    const { layer } = active, row = layer.place.get(active.unit);
    const to = { ArrowLeft: active.p - 1, ArrowRight: active.p + 1, Home: 0, End: active.P - 1, PageUp: active.p - 10, PageDown: active.p + 10 }[event.key];
    if (to !== undefined) shared.go(active, to);
    else if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      active.unit = layer.order[clamp(row + (event.key === "ArrowUp" ? -1 : 1), 0, layer.units - 1)];
      active.update();
    } else if (event.key === "l" || event.key === "L") active.setLayer((active.layers.indexOf(layer) + 1) % active.layers.length);
    else return;
    event.preventDefault();
  });

  // --- definitions on hover and on focus -----------------------------------------------------------------------

  const note = make("div", { class: "note", role: "tooltip", hidden: "" });
  document.body.append(note);
  const show = (event) => {
    const target = event.target.closest?.("[data-note]");
    note.hidden = !target;
    if (!target) return;
    note.textContent = target.dataset.note;
    const box = target.getBoundingClientRect();
    note.style.left = `${clamp(box.left, 8, innerWidth - note.offsetWidth - 8)}px`;
    note.style.top = `${box.bottom + 8 + note.offsetHeight > innerHeight ? box.top - note.offsetHeight - 8 : box.bottom + 8}px`;
  };
  for (const event of ["pointerover", "focusin"]) document.addEventListener(event, show);
  for (const event of ["pointerout", "focusout"]) document.addEventListener(event, () => (note.hidden = true));
  addEventListener("keydown", (event) => { if (event.key === "Escape") note.hidden = true; });
  addEventListener("scroll", () => (note.hidden = true), true);
})();
