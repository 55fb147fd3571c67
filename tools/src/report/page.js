// The script of all pages of reel. It draws the charts with uPlot and shows the rollouts of one step at a time.
//
// Rust writes each chart as <figure class="chart"> with its data as JSON inside (chart.rs documents the fields):
//
//   lines     values over steps, one line per run, with a running mean, or with bars for their intervals; or values
//             over numbers of GPUs, on a logarithmic axis and without a mean
//   area      values over time, as stacked layers
//   roofline  dots of kernels below the roofs of a machine, both axes logarithmic
//
// Texts from models and files reach the page by textContent only, never as HTML.
"use strict";
(() => {
  const FONT = "11px system-ui, sans-serif";
  const HEIGHT = { lines: 190, area: 240, roofline: 420 };
  const root = document.documentElement;
  const color = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const hue = (index) => color(`--c${index % 8}`);

  function element(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  // ---- Numbers ----------------------------------------------------------------------------------------------------

  const PREFIXES = [
    [1e15, "P"],
    [1e12, "T"],
    [1e9, "G"],
    [1e6, "M"],
    [1e3, "k"],
    [1, ""],
    [1e-3, "m"],
    [1e-6, "µ"],
    [1e-9, "n"],
  ];
  // Units that take a decimal prefix. Seconds take only m, µ and n: kiloseconds are not in use.
  const PREFIXED = ["B", "s", "tokens", "tokens/s", "FLOP/s", "FLOP"];

  // Returns the factor and the suffix for numbers of this size: 5e9 bytes have the factor 1e9 and the suffix " GB".
  function notation(size, unit) {
    if (!size || !isFinite(size)) return { factor: 1, suffix: unit && ` ${unit}` };
    if (PREFIXED.includes(unit)) {
      const known = PREFIXES.filter(([factor]) => unit !== "s" || factor <= 1);
      const [factor, prefix] = known.find(([f]) => size >= f * 0.9999999) ?? known[known.length - 1];
      // A unit that is a word has a space between the prefix and itself: `GB`, but `k tokens/s`.
      return { factor, suffix: ` ${prefix}${prefix && /^[a-z]{3}/.test(unit) ? " " : ""}${unit}` };
    }
    const suffix = unit && ` ${unit}`;
    if (size >= 1e-3 && size < 1e6) return { factor: 1, suffix };
    const power = Math.floor(Math.log10(size) + 1e-9);
    return { factor: 10 ** power, suffix: `e${power}${suffix}` };
  }

  // A single value with five significant digits.
  function valueText(value, unit) {
    const { factor, suffix } = notation(Math.abs(value), unit);
    return Number((value / factor).toPrecision(5)) + suffix;
  }

  // The labels of an axis. All have the same factor and suffix, and as many decimals as the tick that needs the most.
  function tickTexts(ticks, unit) {
    const { factor, suffix } = notation(Math.max(...ticks.map(Math.abs)), unit);
    const exact = (digits) =>
      ticks.every((t) => Math.abs(t / factor - Number((t / factor).toFixed(digits))) < 1e-6 * 10 ** -digits);
    let digits = 0;
    while (digits < 6 && !exact(digits)) digits++;
    // Labels leave out a long unit: the chart's caption names it.
    const short = suffix.length <= 5 ? suffix : suffix.slice(0, suffix.length - unit.length).trimEnd();
    return ticks.map((t) => (t / factor).toFixed(digits) + (t === 0 && suffix.startsWith("e") ? "" : short));
  }

  // The ticks of a logarithmic axis: powers of ten; on an axis of at most three powers also their multiples by 2 and 5.
  function logTicks(low, high) {
    const ticks = [];
    const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
    const skip = Math.ceil((last - first) / 8);
    for (let power = first; power <= last; power++) {
      const steps = last - first <= 3 ? [1, 2, 5] : [1];
      for (const step of steps) {
        const tick = Number(`${step}e${power}`);
        if (tick >= low * 0.9999 && tick <= high * 1.0001 && (power - first) % skip === 0) ticks.push(tick);
      }
    }
    return ticks;
  }

  // About `most` ticks of a linear axis, at multiples of a step that is 1, 2 or 5 times a power of ten.
  function linearTicks(low, high, most) {
    const rough = (high - low) / most;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.9999);
    const ticks = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++)
      ticks.push(Number((i * step).toPrecision(12)));
    return ticks;
  }

  // ---- Ranges -----------------------------------------------------------------------------------------------------

  // The robust range: the range of the middle 96 % of the values, widened by half of its width on both sides, but not
  // beyond the lowest and the highest value. For fewer than 20 values it is the range of all. `values` is not empty.
  function robustEnds(values) {
    const sorted = Float64Array.from(values).sort();
    const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
    const [min, max] = [at(0), at(1)];
    const [inner, outer] = [at(0.02), at(0.98)];
    const room = 0.5 * (outer - inner);
    return sorted.length >= 20 && room > 0 ? [Math.max(min, inner - room), Math.min(max, outer + room)] : [min, max];
  }

  // The range of an axis that shows these values. `values` is not empty.
  function valueRange(values, mode) {
    const ends = values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
    if (mode === "log") return [ends[0] / 1.15, ends[1] * 1.15];
    const [low, high] = mode === "robust" ? robustEnds(values) : ends;
    const spread = high - low || Math.abs(high) || 1;
    const lower = low - 0.06 * spread;
    return [low >= 0 && lower < 0 ? 0 : lower, high + 0.06 * spread];
  }

  // For each value, the mean over a window around it. The window has the fraction `share` of all values.
  function runningMean(values, share) {
    const half = Math.floor((share * values.length) / 2);
    const sums = [0];
    for (const value of values) sums.push(sums[sums.length - 1] + value);
    return values.map((_, i) => {
      const [from, to] = [Math.max(0, i - half), Math.min(values.length, i + half + 1)];
      return (sums[to] - sums[from]) / (to - from);
    });
  }

  // The index of the number nearest to x in a sorted list.
  function nearest(sorted, x) {
    let [low, high] = [0, sorted.length - 1];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (sorted[middle] <= x) low = middle;
      else high = middle;
    }
    return x - sorted[low] <= sorted[high] - x ? low : high;
  }

  // ---- Parts that all charts share --------------------------------------------------------------------------------

  const measure = document.createElement("canvas").getContext("2d");
  function textWidth(text) {
    measure.font = FONT;
    return measure.measureText(text).width;
  }

  // An axis whose labels are never cut off: it is as wide as its widest label.
  function axis(side, texts, ticks, more = {}) {
    const wide = (u, labels) => Math.ceil(Math.max(18, ...(labels ?? []).map((l) => textWidth(l ?? "")))) + 14;
    return {
      side,
      font: FONT,
      stroke: () => color("--dim"),
      grid: { stroke: () => color("--line"), width: 1 },
      ticks: { stroke: () => color("--line"), width: 1, size: 4 },
      gap: 4,
      splits: (u, i, low, high) => ticks(low, high, u),
      filter: (u, splits) => splits,
      values: (u, splits) => texts(splits),
      size: side === 3 ? wide : 26,
      ...more,
    };
  }

  const stepAxis = (name) =>
    axis(
      2,
      (ticks) => ticks.map((t) => String(t)),
      (low, high, u) => linearTicks(low, high, Math.max(2, u.width / 55)).filter(Number.isInteger),
      {
        label: name,
        labelFont: FONT,
        labelSize: 16,
        labelGap: 0,
      },
    );

  // An axis with a tick at each point, for charts with few points.
  const pointAxis = (name) =>
    axis(
      2,
      (ticks) => ticks.map((t) => String(t)),
      (low, high, u) => u.data[0].filter((x) => x >= low && x <= high),
      {
        label: name,
        labelFont: FONT,
        labelSize: 16,
        labelGap: 0,
      },
    );

  // Resizes a chart when the width of its figure changes.
  const sizes = new ResizeObserver((entries) => {
    for (const { target, contentRect } of entries) target.resize?.(Math.floor(contentRect.width));
  });

  // Creates a chart in the element `plot` by `make(width)`, and resizes and recolors it with the page. Returns a
  // function that creates the chart again.
  function mount(plot, make) {
    let chart = null;
    const create = () => {
      chart?.destroy();
      const width = Math.floor(plot.clientWidth);
      chart = width > 0 ? make(width) : null;
    };
    plot.resize = (width) => {
      if (width <= 0) return;
      if (!chart) create();
      else if (chart.width !== width) chart.setSize({ width, height: chart.height });
    };
    create();
    sizes.observe(plot);
    redraws.push(() => chart?.redraw(false));
    return create;
  }
  const redraws = [];
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraws.forEach((redraw) => redraw()));

  const swatch = (index) => {
    const made = element("i", { className: "key" });
    made.style.background = `var(--c${index % 8})`;
    return made;
  };

  // Creates a group of buttons. A click calls `choose` with the button's name; `press` marks one button as pressed.
  function choice(label, options, chosen, choose) {
    const group = element("span", { className: "choice", role: "group", ariaLabel: label });
    const press = (name) =>
      [...group.children].forEach((b) => b.setAttribute("aria-pressed", String(b.value === name)));
    for (const [name, title] of options) {
      const button = element("button", { type: "button", value: name, textContent: name, title });
      button.addEventListener("click", () => choose(name));
      group.append(button);
    }
    press(chosen);
    return { group, press };
  }

  const RANGES = [
    ["robust", "leave out spikes"],
    ["all", "every value"],
    ["log", "logarithmic axis; values of 0 and below are left out"],
  ];

  // ---- Lines ------------------------------------------------------------------------------------------------------

  const charts = [];
  let smoothing = 0.05;

  function lines(figure, data) {
    const runs = data.series.map((s) => ({ ...s, shown: true }));
    const canBeLog = runs.some((run) => run.y.some((y) => y > 0));
    let mode = data.range === "log" && !canBeLog ? "robust" : data.range;
    const plot = figure.querySelector(".plot");
    const note = element("small", { className: "note" });
    const legend = element("div", { className: "legend" });
    for (const run of runs) {
      run.text = element("span");
      const name = runs.length > 1 ? [swatch(run.color), element("b", { textContent: run.name }), " "] : [];
      run.entry = element(runs.length > 1 ? "button" : "span", { className: "entry" }, ...name, run.text);
      if (runs.length > 1) {
        run.entry.type = "button";
        run.entry.title = "show or hide this run";
        run.entry.addEventListener("click", () => {
          run.shown = !run.shown;
          run.entry.setAttribute("aria-pressed", String(run.shown));
          create();
        });
      }
      legend.append(run.entry);
    }
    figure.append(legend, note);

    const isOverSteps = data.x === "step";
    // Values with intervals and values over numbers of GPUs are few and have no running mean.
    const isSmoothed = (run) => isOverSteps && smoothing > 0 && run.x.length > 2 && !run.low;

    // Writes each run's value at x into the legend; the last value if x is null.
    const read = (x) => {
      for (const run of runs) {
        const i = x === null ? run.x.length - 1 : nearest(run.x, x);
        const mean = isSmoothed(run) ? `, mean ${valueText(run.mean[i], data.unit)}` : "";
        const interval = run.low ? ` [${[run.low[i], run.high[i]].map((y) => valueText(y, data.unit)).join(", ")}]` : "";
        run.text.textContent = `${data.x} ${run.x[i]}: ${valueText(run.y[i], data.unit)}${interval}${x === null ? "" : mean}`;
      }
    };

    // The range of the y axis for the steps in view. uPlot calls this before it changes the scale of the x axis, so the
    // steps come from `idxs` and not from that scale.
    const range = (u) => {
      const [first, last] = u.series[0].idxs ?? [];
      const leftmost = u.data[0][first ?? 0] ?? -Infinity;
      const rightmost = u.data[0][last ?? u.data[0].length - 1] ?? Infinity;
      const values = [];
      for (const run of runs.filter((r) => r.shown)) {
        run.y.forEach((y, i) => {
          if (run.x[i] < leftmost || run.x[i] > rightmost) return;
          const seen = run.low ? [y, run.low[i], run.high[i]] : [y];
          values.push(...seen.filter((v) => mode !== "log" || v > 0));
        });
      }
      if (!values.length) return mode === "log" ? [0.1, 1] : [0, 1];
      const [from, to] = valueRange(values, mode);
      const outside = values.filter((v) => v < from || v > to).length;
      note.textContent = outside ? `${outside} of ${values.length} values in view lie outside the range` : "";
      return [from, to];
    };

    const create = mount(plot, (width) => {
      for (const run of runs) {
        if (mode === "log") {
          // On a logarithmic axis the mean is taken of the logarithms: a spike would lift a plain mean in its whole
          // window.
          const logs = runningMean(
            run.y.map((y) => Math.log(Math.max(y, Number.MIN_VALUE))),
            smoothing,
          );
          run.mean = logs.map(Math.exp);
        } else {
          // In the robust range, the mean takes a spike as the end of the range, for the same reason.
          const [low, high] = mode === "robust" ? robustEnds(run.y) : [-Infinity, Infinity];
          run.mean = runningMean(
            run.y.map((y) => Math.min(Math.max(y, low), high)),
            smoothing,
          );
        }
      }
      const clean = (values) => values.map((v) => (mode === "log" && v <= 0 ? null : v));
      const shown = runs.filter((run) => run.shown);
      const table = uPlot.join(shown.map((run) => [run.x, clean(run.y), clean(run.mean)]));
      const series = shown.flatMap((run) => [
        {
          stroke: () => hue(run.color),
          width: 1,
          alpha: isSmoothed(run) ? 0.35 : 1,
          points: { show: run.x.length <= 40, size: 4, fill: () => hue(run.color), stroke: () => hue(run.color) },
        },
        { stroke: () => hue(run.color), width: 2, show: isSmoothed(run), points: { show: false } },
      ]);
      const ticks = (low, high, u) => {
        const few = mode === "log" ? logTicks(low, high) : [];
        return few.length > 1 ? few : linearTicks(low, high, 5);
      };
      const bars = (u) => {
        const { ctx } = u;
        ctx.save();
        ctx.beginPath();
        ctx.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height);
        ctx.clip();
        ctx.lineWidth = devicePixelRatio;
        for (const run of shown.filter((r) => r.low)) {
          ctx.strokeStyle = hue(run.color);
          ctx.beginPath();
          run.x.forEach((x, i) => {
            const low = mode === "log" ? Math.max(run.low[i], Number.MIN_VALUE) : run.low[i];
            const at = u.valToPos(x, "x", true);
            ctx.moveTo(at, u.valToPos(low, "y", true));
            ctx.lineTo(at, u.valToPos(run.high[i], "y", true));
          });
          ctx.stroke();
        }
        ctx.restore();
      };
      const texts = (splits) =>
        mode === "log" && splits.length > 1 && splits[splits.length - 1] / splits[0] >= 100
          ? splits.map((t) => tickTexts([t], data.unit)[0])
          : tickTexts(splits, data.unit);
      const made = new uPlot(
        {
          width,
          height: HEIGHT.lines,
          padding: [10, 16, 0, 0],
          legend: { show: false },
          cursor: {
            sync: { key: isOverSteps ? "steps" : data.x, setSeries: false },
            y: false,
            points: { size: 6 },
            drag: { x: true, y: false },
          },
          scales: {
            x: {
              time: false,
              distr: isOverSteps ? 1 : 3,
              range: (u, low, high) => (high > low ? [low, high] : [low - 1, low + 1]),
            },
            y: { distr: mode === "log" ? 3 : 1, range },
          },
          axes: [isOverSteps ? stepAxis(data.x) : pointAxis(data.x), axis(3, texts, ticks)],
          series: [{}, ...series],
          hooks: { draw: [bars], setCursor: [(u) => read(u.cursor.left >= 0 ? u.posToVal(u.cursor.left, "x") : null)] },
        },
        shown.length ? table : [[0, 1]],
        plot,
      );
      read(null);
      return made;
    });

    const ranges = RANGES.filter(([name]) => name !== "log" || canBeLog);
    const { group, press } = choice(`range of ${data.name}`, ranges, mode, (name) => set(name));
    figure.querySelector("figcaption").append(group);
    const set = (name) => {
      mode = name === "log" && !canBeLog ? "robust" : name;
      press(mode);
      create();
    };
    charts.push({ set, create });
  }

  // Adds the controls for all curves of a page: range and smoothing.
  function toolbar(curves) {
    if (!curves || charts.length < 2) return;
    const { group, press } = choice("range of all charts", RANGES, "", (name) => {
      press(name);
      charts.forEach((chart) => chart.set(name));
    });
    const slider = element("input", { type: "range", min: 0, max: 25, value: 100 * smoothing, ariaLabel: "smoothing" });
    const text = element("output", { textContent: `${slider.value} %` });
    slider.addEventListener("input", () => {
      smoothing = slider.value / 100;
      text.textContent = `${slider.value} %`;
      charts.forEach((chart) => chart.create());
    });
    const hint = "drag to zoom, double-click to see all steps";
    const bar = element(
      "div",
      { className: "toolbar" },
      element("span", {}, "range ", group),
      element("label", {}, "running mean over ", slider, " ", text, " of the steps"),
      element("small", { textContent: hint }),
    );
    curves.before(bar);
  }

  // ---- Stacked areas ----------------------------------------------------------------------------------------------

  function area(figure, data) {
    // Each layer is drawn from its upper edge down to 0, the highest layer first, so that lower layers cover the part
    // below their own edges.
    let below = data.x.map(() => 0);
    const tops = data.series.map((s) => (below = below.map((sum, i) => sum + s.y[i])));
    const order = data.series.map((_, i) => i).reverse();
    const readout = element("small", { className: "note" });
    figure.append(readout);
    const read = (i) => {
      const parts = data.series.map((s) => `${s.name} ${valueText(s.y[i], data.unit)}`);
      const together = `together ${valueText(below[i], data.unit)}`;
      readout.textContent = `${valueText(data.x[i], data.x_unit)}: ${[...parts, together].join(", ")}`;
    };
    const bare = () => (readout.textContent = "Point at the chart to see its values.");
    const ticks = (low, high, u) => linearTicks(low, high, 5);
    mount(
      figure.querySelector(".plot"),
      (width) =>
        new uPlot(
          {
            width,
            height: HEIGHT.area,
            padding: [10, 24, 0, 0],
            legend: { show: false },
            cursor: { y: false, points: { show: false }, drag: { x: true, y: false } },
            scales: { x: { time: false }, y: { range: (u, low, high) => [0, (high || 1) * 1.05] } },
            axes: [
              axis(
                2,
                (t) => tickTexts(t, data.x_unit),
                (low, high, u) => linearTicks(low, high, Math.max(2, u.width / 80)),
              ),
              axis(3, (t) => tickTexts(t, data.unit), ticks),
            ],
            series: [
              {},
              ...order.map((i) => ({
                width: 0,
                fill: () => hue(data.series[i].color),
                paths: uPlot.paths.stepped({ align: 1 }),
                points: { show: false },
              })),
            ],
            hooks: { setCursor: [(u) => (u.cursor.idx == null || u.cursor.left < 0 ? bare() : read(u.cursor.idx))] },
          },
          [data.x, ...order.map((i) => tops[i])],
          figure.querySelector(".plot"),
        ),
    );
    bare();
  }

  // ---- Roofline ---------------------------------------------------------------------------------------------------

  function roofline(figure, data) {
    const decade = (value, round) => 10 ** round(Math.log10(value));
    const knees = data.roofs.map((roof) => roof.flops / roof.bandwidth);
    const xs = [...data.points.map((p) => p.x), ...knees];
    const [left, right] = [decade(Math.min(...xs), Math.floor), decade(2 * Math.max(...xs), Math.ceil)];
    const ys = data.points.map((p) => p.y);
    const top = 1.6 * Math.max(...data.roofs.map((roof) => roof.flops), ...ys);
    const bottom = decade(Math.min(...data.roofs.map((roof) => left * roof.bandwidth), ...ys), Math.floor);
    const roofs = data.roofs.map(({ flops, bandwidth }, i) => [
      [left, knees[i], right],
      [left * bandwidth, flops, flops],
    ]);
    // A kernel's weight is its lost time: the larger it is, the larger is the kernel's dot.
    const heaviest = Math.max(...data.points.map((p) => p.weight), 1e-30);
    const radius = (point) => 3.5 + 8 * Math.sqrt(point.weight / heaviest);
    const readout = element("small", { className: "note" });
    figure.append(readout);
    const plot = figure.querySelector(".plot");
    const table = data.points.some((p) => p.id) ? "; click to find it in the table" : "";
    const hint = `Point at a dot to see its kernel${table}.`;
    let near = null;

    const draw = (u) => {
      const { ctx } = u;
      const px = devicePixelRatio;
      ctx.save();
      ctx.font = `${11 * px}px system-ui, sans-serif`;
      ctx.textAlign = "right";
      ctx.fillStyle = color("--ink");
      data.roofs.forEach((roof, i) => {
        // The name of a roof stands at its flat part. Roofs of equal height share this part, so all but the first have
        // their names at their slopes.
        const isLower = data.roofs.findIndex((other) => other.flops === roof.flops) < i;
        const [x, y] = isLower
          ? [Math.sqrt(left * knees[i]), roof.bandwidth * Math.sqrt(left * knees[i])]
          : [right, roof.flops];
        ctx.fillText(roof.name, u.valToPos(x, "x", true) - 6 * px, u.valToPos(y, "y", true) - 5 * px);
      });
      for (const point of [...data.points].sort((a, b) => b.weight - a.weight)) {
        ctx.beginPath();
        ctx.arc(u.valToPos(point.x, "x", true), u.valToPos(point.y, "y", true), radius(point) * px, 0, 2 * Math.PI);
        ctx.globalAlpha = 0.8;
        ctx.fillStyle = hue(point.color);
        ctx.fill();
        ctx.globalAlpha = 1;
        ctx.lineWidth = (point === near ? 2 : 1) * px;
        ctx.strokeStyle = color(point === near ? "--ink" : "--card");
        ctx.stroke();
      }
      ctx.restore();
    };
    const find = (u) => {
      const { left: x, top: y } = u.cursor;
      if (!(x >= 0)) return null;
      const away = (p) => Math.hypot(u.valToPos(p.x, "x") - x, u.valToPos(p.y, "y") - y) - radius(p);
      const best = data.points.reduce((a, b) => (a && away(a) <= away(b) ? a : b), null);
      return best && away(best) < 24 ? best : null;
    };
    const point = (u) => {
      const found = find(u);
      readout.textContent = found ? `${found.name}: ${found.text}` : hint;
      if (found === near) return;
      near = found;
      u.redraw(false);
    };
    readout.textContent = hint;
    const logAxis = (side, unit, name) =>
      axis(
        side,
        (splits) => splits.map((t) => tickTexts([t], unit)[0]),
        (low, high) => logTicks(low, high),
        {
          ...(side === 2 ? { label: name, labelFont: FONT, labelSize: 16, labelGap: 0 } : {}),
        },
      );
    mount(plot, (width) => {
      const made = new uPlot(
        {
          width,
          height: Math.min(HEIGHT.roofline, Math.max(260, width * 0.6)),
          padding: [10, 24, 0, 0],
          legend: { show: false },
          cursor: { x: false, y: false, points: { show: false }, drag: { x: false, y: false } },
          scales: {
            x: { time: false, distr: 3, range: () => [left, right] },
            y: { distr: 3, range: () => [bottom, top] },
          },
          axes: [logAxis(2, "", data.x), logAxis(3, data.unit, "")],
          series: [
            {},
            ...data.roofs.map(() => ({
              stroke: () => color("--ink"),
              width: 1.5,
              spanGaps: true,
              points: { show: false },
            })),
          ],
          hooks: { draw: [draw], setCursor: [point] },
        },
        uPlot.join(roofs),
        plot,
      );
      made.over.addEventListener("click", () => {
        const row = near?.id && document.getElementById(near.id);
        if (!row) return;
        // Opens the closed list that contains the row. The hash of the address then makes the browser highlight the
        // row.
        row.closest("details")?.setAttribute("open", "");
        location.hash = encodeURIComponent(near.id);
        row.scrollIntoView({ block: "center" });
      });
      return made;
    });
  }

  // ---- Rollouts ---------------------------------------------------------------------------------------------------

  // Shows one step at a time: for each run, the group of that step, or else of the last step before it with a group.
  function rollouts(section) {
    const groups = [...section.querySelectorAll("article[data-step]")];
    const steps = [...new Set(groups.map((g) => Number(g.dataset.step)))].sort((a, b) => a - b);
    if (steps.length < 2) return;
    const slider = element("input", {
      type: "range",
      min: 0,
      max: steps.length - 1,
      value: steps.length - 1,
      ariaLabel: "step",
    });
    const text = element("output");
    const show = () => {
      const step = steps[slider.value];
      text.textContent = `step ${step} (${Number(slider.value) + 1} of ${steps.length})`;
      for (const run of new Set(groups.map((g) => g.dataset.run))) {
        const own = groups.filter((g) => g.dataset.run === run);
        const chosen = own.filter((g) => Number(g.dataset.step) <= step).pop() ?? own[0];
        own.forEach((g) => (g.hidden = g !== chosen));
      }
    };
    const move = (by, label) => {
      const button = element("button", { type: "button", textContent: by < 0 ? "‹" : "›", ariaLabel: label });
      button.addEventListener("click", () => {
        slider.value = Number(slider.value) + by;
        show();
      });
      return button;
    };
    slider.addEventListener("input", show);
    section.prepend(
      element("div", { className: "toolbar stepper" }, move(-1, "step before"), slider, move(1, "next step"), text),
    );
    show();
  }

  // ---- Start ------------------------------------------------------------------------------------------------------

  document.querySelectorAll(".rollouts").forEach(rollouts);
  const KINDS = { lines, area, roofline };
  for (const figure of document.querySelectorAll("figure.chart")) {
    const data = JSON.parse(figure.querySelector("script").textContent);
    try {
      KINDS[data.kind](figure, data);
    } catch (error) {
      // An error in one chart must not stop the others.
      figure.querySelector(".plot").textContent = `This chart cannot be drawn: ${error.message}`;
    }
  }
  toolbar(document.querySelector(".curves"));
})();
