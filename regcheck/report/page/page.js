"use strict";
(() => {
  const ROW = 28; // pixels of a row, as page.css has it
  const SPARE = 8; // rows that are there above and below those in view

  const styles = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const element = (tag, text, kind) => {
    const made = document.createElement(tag);
    made.textContent = text; // never HTML: names may hold anything
    if (kind) made.className = kind;
    return made;
  };
  const numbers = (text, Type) =>
    new Type(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
  const power = (text) => text.replace(/e([+-])(\d)$/, "e$10$2"); // two digits, as Python writes them
  const word = (value) => String(value).replace("Infinity", "inf").toLowerCase();
  const small = (value) =>
    value === 0 ? "0" : Number.isFinite(value) ? power(value.toExponential(1)) : word(value);
  const loss = (value) =>
    !Number.isFinite(value) ? word(value) : value === 0 || (Math.abs(value) >= 1e-4 && Math.abs(value) < 1e6)
      ? value.toPrecision(9) : power(value.toExponential(8));

  /** Read the arrays that a page's JSON holds as text. */
  function read(text) {
    const data = JSON.parse(text);
    for (const key of ["step", "epoch", "batch"]) data[key] = numbers(data[key], Uint32Array);
    for (const key of ["scratch", "framework"]) data[key] = numbers(data[key], Float64Array);
    data.lossJudged = numbers(data.lossJudged, Float64Array);
    for (const tensor of data.tensors) {
      for (const key of ["accumulated", "oneStep", "bound", "judged"]) {
        tensor[key] = numbers(tensor[key], Float64Array);
      }
      tensor.allowed = tensor.byRounding ? tensor.bound.map((one) => one * tensor.limit) : tensor.bound;
      tensor.allowedBy = tensor.byRounding ? `rounding allows (${tensor.limit} × bound)` : "rounding could cause";
    }
    if (data.paths) {
      data.paths.step = numbers(data.paths.step, Uint32Array);
      for (const entry of data.paths.entries) {
        for (const side of ["scratch", "torch"]) entry[side] = numbers(entry[side], Float64Array);
      }
    }
    return data;
  }

  /** One run: two plots, the numbers of one step, and a table of all of them. */
  class Run {
    constructor(root) {
      this.root = root;
      this.find = (kind) => root.querySelector(kind);
      this.data = read(this.find("script").textContent);
      this.tensor = this.data.tensors[0];
      this.first = this.data.marked?.step ?? null;
      this.place = this.nearest(this.first ?? 1);
      this.range = null;
      this.listen();
      this.choose();
      this.goTo(this.place);
    }

    /** Return where a step is, or the one nearest to it. */
    nearest(step) {
      let low = 0, high = this.data.step.length - 1;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (this.data.step[middle] < step) low = middle + 1; else high = middle;
      }
      const before = this.data.step[Math.max(0, low - 1)];
      return low > 0 && step - before < this.data.step[low] - step ? low - 1 : low;
    }

    listen() {
      this.find(".tensor").addEventListener("change", (event) => {
        this.tensor = this.data.tensors[event.target.selectedIndex];
        this.choose();
      });
      this.find(".step").max = this.data.step.at(-1);
      this.find(".step").addEventListener("change", (event) => {
        if (event.target.value) this.goTo(this.nearest(Number(event.target.value)));
      });
      this.find(".to-first").addEventListener("click", () => {
        this.zoom([this.first - 10.5, this.first + 20.5]);
        this.goTo(this.nearest(this.first));
      });
      this.find(".to-all").addEventListener("click", () => this.zoom(null));
      this.find(".steps").addEventListener("scroll", () => requestAnimationFrame(() => this.fill()));
      for (const plot of this.root.querySelectorAll(".plot")) {
        plot.addEventListener("keydown", (event) => this.key(event, plot));
      }
    }

    key(event, plot) {
      const last = this.data.step.length - 1, far = Math.max(1, Math.round(last / 10));
      const to = {
        ArrowLeft: this.place - 1, ArrowRight: this.place + 1, PageUp: this.place - far,
        PageDown: this.place + far, Home: 0, End: last,
      }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      this.goTo(Math.min(last, Math.max(0, to)));
      Plotly.Fx.hover(plot, {xval: this.data.step[this.place], yval: 0}, "xy");
    }

    /** Show a tensor. */
    choose() {
      this.find(".name").textContent = this.tensor.name;
      this.draw();
      this.head();
      this.fill();
      this.tell();
    }

    /** Go to a step: its numbers, and its row in the middle of the table. */
    goTo(place) {
      this.place = place;
      const box = this.find(".steps");
      box.scrollTop = place * ROW - (box.clientHeight - ROW) / 2;
      this.find(".step").value = this.data.step[place];
      this.fill();
      this.tell();
    }

    tell() {
      const {data, tensor, place} = this, [own, theirs] = data.sides;
      this.find(".readout").textContent =
        `step ${data.step[place]} (epoch ${data.epoch[place]}, batch ${data.batch[place]}): ` +
        `loss ${loss(data.scratch[place])} ${own}, ${loss(data.framework[place])} ${theirs}; ` +
        `${tensor.name}: accumulated ${small(tensor.accumulated[place])}, ` +
        `one-step ${small(tensor.oneStep[place])}, ${tensor.allowedBy} ${small(tensor.allowed[place])}`;
    }

    zoom(range) {
      this.range = range;
      this.draw();
    }

    draw() {
      const {data, tensor} = this;
      const trace = (name, y, color, dash, width) => ({
        name, x: data.step, y, type: "scatter", connectgaps: true, line: {color, dash, width},
        mode: data.step.length > 200 ? "lines" : "lines+markers", marker: {size: 5, color},
      });
      const scratch = styles("--scratch"), torch = styles("--torch"), quiet = styles("--quiet");
      this.plot(".losses", [
        trace(data.sides[0], data.scratch, scratch, "solid", 3),
        trace(data.sides[1], data.framework, torch, "dash", 2),
      ], "linear", ".9g");
      this.plot(".differences", [
        trace("accumulated", tensor.accumulated, styles("--accumulated"), "dot", 3),
        trace("one-step", tensor.oneStep, styles("--one-step"), "solid", 2),
        trace(tensor.allowedBy, tensor.allowed, quiet, "dash", 2),
      ], "log", ".1e");
      this.drawPaths();
    }

    /** Draw the parameters' paths: a colour for each entry, a dash for each side. */
    drawPaths() {
      const {paths, sides} = this.data;
      if (!paths) return;
      const colors = ["--scratch", "--torch", "--one-step", "--accumulated", "--bad", "--quiet"].map(styles);
      this.plot(".paths", paths.entries.flatMap((entry, at) => ["scratch", "torch"].map((side) => ({
        name: side === "scratch" ? entry.name : `${entry.name}, ${sides[1]}`, x: paths.step, y: entry[side],
        type: "scatter", mode: paths.step.length > 200 ? "lines" : "lines+markers", connectgaps: true,
        showlegend: side === "scratch", legendgroup: entry.name, marker: {size: 4, color: colors[at]},
        line: {color: colors[at], dash: side === "scratch" ? "solid" : "dash", width: 2},
      }))), "linear", ".9g");
    }

    plot(kind, traces, type, format) {
      const ink = styles("--ink"), line = styles("--line"), bad = styles("--bad"), clear = "rgba(0,0,0,0)";
      const steps = this.data.step, touch = matchMedia("(pointer: coarse)").matches;
      const range = this.range ?? [steps[0] - 0.5, steps.at(-1) + 0.5];
      const right = this.first > (range[0] + range[1]) / 2;
      const axis = {gridcolor: line, linecolor: line, zerolinecolor: line};
      for (const one of traces) one.hovertemplate = `%{y:${format}}`;
      Plotly.react(this.find(kind), traces, {
        paper_bgcolor: clear, plot_bgcolor: clear, font: {color: ink, size: 13},
        margin: {l: 60, r: 12, t: 64, b: 40}, hovermode: "x unified", dragmode: touch ? false : "zoom",
        hoverlabel: {bgcolor: styles("--paper"), bordercolor: line, font: {color: ink}},
        legend: {orientation: "h", x: 0, y: 1.09, yanchor: "bottom", bgcolor: clear},
        xaxis: {...axis, title: {text: "step", standoff: 8}, range, unifiedhovertitle: {text: "step %{x}"}},
        yaxis: {...axis, type, exponentformat: "power", automargin: true, nticks: 7},
        shapes: this.first === null ? [] : [{
          type: "line", x0: this.first, x1: this.first, yref: "paper", y0: 0, y1: 1,
          line: {color: bad, width: 2, dash: "dot"},
        }],
        annotations: this.first === null ? [] : [{
          x: this.first, y: 1, yref: "paper", yanchor: "bottom", xanchor: right ? "right" : "left",
          text: this.data.marked.text, showarrow: false, font: {color: bad},
        }],
      }, {responsive: true, displayModeBar: false});
      const made = this.find(kind);
      if (!made.listens) {
        made.listens = true;
        made.on("plotly_click", (event) => this.goTo(this.nearest(event.points[0].x)));
      }
    }

    head() {
      const row = document.createElement("tr");
      const heads = ["step", "epoch", "batch", ...this.data.sides.map((side) => `loss ${side}`),
        "accumulated", "one-step", "bound", this.data.ratio];
      row.append(...heads.map((text) => {
        const cell = element("th", text);
        cell.scope = "col";
        return cell;
      }));
      this.find(".steps thead").replaceChildren(row);
      this.find(".steps table").setAttribute("aria-rowcount", String(this.data.step.length + 1));
    }

    /** Fill the table with those rows that are in view, and blank space for all others. */
    fill() {
      const box = this.find(".steps"), count = this.data.step.length;
      const from = Math.max(0, Math.floor(box.scrollTop / ROW) - SPARE);
      const to = Math.min(count, Math.ceil((box.scrollTop + box.clientHeight) / ROW) + SPARE);
      const rows = [this.blank(from)];
      for (let place = from; place < to; place++) rows.push(this.row(place));
      rows.push(this.blank(count - to));
      this.find(".steps tbody").replaceChildren(...rows);
    }

    blank(rows) {
      const made = document.createElement("tr");
      made.style.height = `${rows * ROW}px`;
      made.setAttribute("aria-hidden", "true");
      return made;
    }

    row(place) {
      const {data, tensor} = this, made = document.createElement("tr");
      const step = data.step[place], beyond = tensor.judged[place] > tensor.limit ? "beyond" : "";
      const differ = data.lossJudged[place] > data.lossLimit ? "beyond" : "";
      made.className = [step === this.first ? "first" : "", place === this.place ? "here" : ""].join(" ");
      made.setAttribute("aria-rowindex", String(place + 2));
      made.append(
        element("td", step), element("td", data.epoch[place]), element("td", data.batch[place]),
        element("td", loss(data.scratch[place]), differ),
        element("td", (differ ? "≠ " : "") + loss(data.framework[place]), differ),
        element("td", small(tensor.accumulated[place])), element("td", small(tensor.oneStep[place])),
        element("td", small(tensor.bound[place])),
        element("td", small(tensor.judged[place]) + (beyond ? " !" : ""), beyond),
      );
      return made;
    }
  }

  const runs = new Map();
  /** Draw a run when it is first seen, not before: its plots need their width. */
  function show(root) {
    if (root.open && root.querySelector(".plot") && !runs.has(root)) runs.set(root, new Run(root));
  }
  for (const root of document.querySelectorAll(".run")) {
    root.addEventListener("toggle", () => show(root));
    show(root);
  }
  for (const link of document.querySelectorAll('a[href^="#run-"]')) {
    link.addEventListener("click", () => { document.querySelector(link.hash).open = true; });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const run of runs.values()) run.draw();
  });
})();
