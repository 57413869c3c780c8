"use strict";
// Longer than most files here: all parts of the page share one view of the data.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const tasks = data.tasks, count = tasks.start.length;
  const byId = (id) => document.getElementById(id);
  const STATES = ["done", "failed", "cancelled"];
  const LEFT = 190, TOP = 22, MIN_SPAN = 5;
  const isBlock = new Uint8Array(count);
  for (const number of tasks.block) isBlock[number] = 1;
  const onPath = new Set(data.path.map((step) => step[0]));
  const failureOf = new Map(data.failures);

  // --- numbers as text ---
  /** With as many digits as tell it from what is `step` away; with two if no step is given. */
  const time = (us, step) => {
    const size = Math.abs(us);
    const digits = (unit) => (step ? Math.max(0, Math.ceil(Math.log10(unit / step) - 1e-9)) : 2);
    if (size >= 6e7) return `${Math.trunc(us / 6e7)} min ${(Math.abs(us % 6e7) / 1e6).toFixed(step ? digits(1e6) : 1)} s`;
    if (size >= 1e6) return `${(us / 1e6).toFixed(digits(1e6))} s`;
    if (size >= 1e3) return `${(us / 1e3).toFixed(digits(1e3))} ms`;
    return `${Math.round(us)} µs`;
  };
  const whole = (number) => Number(number).toLocaleString("en");
  const element = (tag, text, className) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };

  // --- head ---
  const ran = count - data.blocks;
  for (const [value, what] of [
    [whole(ran), "tasks"],
    [whole(data.states.failed || 0), "failed"],
    [whole(data.states.cancelled || 0), "cancelled"],
    [time(data.span_us), "in all"],
    [(data.busy_us / Math.max(1, data.span_us)).toFixed(2), "running on average"],
    [whole(Math.round(ran / Math.max(1e-6, data.span_us / 1e6))), "tasks/s"],
    [new Date(data.begin_us / 1e3).toISOString().replace("T", " ").slice(0, 19), "UTC"],
  ]) {
    const part = element("span");
    part.append(element("b", value), ` ${what}`);
    byId("summary").append(part);
  }
  const missing = [];
  if (data.lost) missing.push(`${whole(data.lost)} tasks are missing: they could not be written to the trace.`);
  if (data.left_out) missing.push(`What could not be read was ${data.left_out}.`);
  byId("lost").hidden = !missing.length;
  byId("lost").textContent = missing.join(" ");

  // --- state of the view ---
  const view = { from: 0, to: Math.max(MIN_SPAN, data.span_us), scroll: 0, rows: "worker", selected: -1 };
  const home = () => ({ from: -0.01 * data.span_us, to: 1.01 * data.span_us + MIN_SPAN });
  Object.assign(view, home());
  let matches = null, match = -1;
  let layout = null;

  /** The rows of a grouping: for each its label, its tasks by start, and how many overlap. */
  function arrange(kind) {
    const groups = new Map();
    for (let number = 0; number < count; number++) {
      const key = kind === "worker" ? tasks.row[number] : tasks.name[number];
      let group = groups.get(key);
      if (!group) groups.set(key, (group = []));
      group.push(number);
    }
    const labels = kind === "worker" ? data.rows : data.names;
    const keys = [...groups.keys()];
    if (kind === "worker") keys.sort((a, b) => a - b);
    let top = 0;
    return keys.map((key) => {
      // Side by side where they overlap, in the first line that is free; at most ten lines.
      const members = groups.get(key), lines = [], line = new Uint8Array(members.length);
      let longest = 0;
      members.forEach((number, place) => {
        const start = tasks.start[number];
        if (!tasks.duration[number]) return; // overlaps nothing
        let free = lines.findIndex((until) => until <= start);
        if (free < 0) free = lines.length < 10 ? lines.length : place % 10;
        lines[free] = start + tasks.duration[number];
        line[place] = free;
        longest = Math.max(longest, tasks.duration[number]);
      });
      const height = lines.length > 1 ? 4 + 9 * lines.length : 18;
      const row = { label: labels[key], members, line, lines: lines.length, longest, top, height };
      top += height;
      return row;
    });
  }

  // --- the chart of tasks ---
  const canvas = byId("gantt"), frame = byId("gantt-frame"), pen = canvas.getContext("2d");
  let pending = false;
  const draw = () => {
    if (!pending) {
      pending = true;
      requestAnimationFrame(() => { pending = false; paint(); });
    }
  };
  // Asked for once: each time makes the browser lay the page out.
  let chartWidth = frame.clientWidth - LEFT;
  const width = () => chartWidth;
  const toX = (us) => LEFT + ((us - view.from) / (view.to - view.from)) * chartWidth;
  const toTime = (x) => view.from + ((x - LEFT) / width()) * (view.to - view.from);
  const total = () => layout.reduce((sum, row) => sum + row.height, 0);

  /** The place of the first task of a row that could reach into the view. */
  function firstVisible(row) {
    let low = 0, high = row.members.length;
    const from = view.from - row.longest;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (tasks.start[row.members[middle]] < from) low = middle + 1; else high = middle;
    }
    return low;
  }

  /** Colours as numbers, as they stand in the memory of an image. */
  const packed = (red, green, blue) => (255 << 24) | (blue << 16) | (green << 8) | red;
  // Without red, which is for failures.
  const palette = data.names.map((_, number) => hslToRgb(25 + ((185 + number * 137.508) % 310), 0.55, 0.58));
  const full = palette.map((rgb) => packed(...rgb));
  const FAILED = packed(217, 45, 32), INK = "#1b1f24"; // on bars, which are the same in the dark
  let style, ground, grid, block, faint, dim;
  /** Take over the colours of the style sheet: those of the day or of the night. */
  function readColours() {
    const computed = getComputedStyle(document.documentElement);
    style = (name) => computed.getPropertyValue(`--${name}`).trim();
    const rgb = (name) => [1, 3, 5].map((place) => parseInt(style(name).slice(place, place + 2), 16));
    const page = rgb("page");
    faint = (colour) => packed(...colour.map((part, place) => Math.round(page[place] + (part - page[place]) * 0.18)));
    [ground, grid, block] = [packed(...page), packed(...rgb("line")), rgb("block")];
    dim = palette.map(faint);
  }
  readColours();
  function hslToRgb(hue, saturation, lightness) {
    const reach = saturation * Math.min(lightness, 1 - lightness);
    return [0, 8, 4].map((turn) => {
      const place = (turn + hue / 30) % 12;
      return Math.round(255 * (lightness - reach * Math.max(-1, Math.min(place - 3, 9 - place, 1))));
    });
  }

  function paint() {
    const scale = window.devicePixelRatio || 1, wide = frame.clientWidth, high = frame.clientHeight;
    chartWidth = wide - LEFT;
    const columns = Math.round(wide * scale), lines = Math.round(high * scale);
    if (canvas.width !== columns || canvas.height !== lines) {
      canvas.width = columns;
      canvas.height = lines;
    }
    view.scroll = Math.max(0, Math.min(view.scroll, total() - (high - TOP)));
    // Bars are set pixel by pixel: that is far quicker than to draw so many.
    const image = pen.createImageData(columns, lines), pixels = new Uint32Array(image.data.buffer);
    pixels.fill(ground);
    const bar = (left, top, size, thick, colour) => {
      const from = Math.round(left * scale), to = Math.min(columns, Math.round((left + size) * scale));
      const until = Math.min(lines, Math.round((top + thick) * scale));
      for (let y = Math.max(0, Math.round(top * scale)); y < until; y++) {
        pixels.fill(colour, y * columns + from, y * columns + to);
      }
    };
    const state = byId("state").value, showPath = byId("show-path").checked;
    const strong = [], texts = [], frames = [];
    let drawn = 0;
    for (const row of layout) {
      const top = TOP + row.top - view.scroll;
      if (top + row.height < TOP || top > high) continue;
      bar(0, top + row.height - 1, wide, 1, grid);
      const thick = row.lines > 1 ? 8 : 14;
      // Tasks of less than a pixel share one: what falls on a pixel that is taken is left out.
      const taken = new Float64Array(row.lines || 1).fill(-1);
      for (let place = firstVisible(row); place < row.members.length; place++) {
        const number = row.members[place], start = tasks.start[number];
        if (start > view.to) break;
        const end = start + tasks.duration[number];
        if (end < view.from) continue;
        const line = row.line[place], left = Math.max(LEFT, toX(start));
        const right = Math.max(left + 1, Math.min(wide, toX(end)));
        const isMatch = (!matches || matches[number]) && (state === "" || tasks.state[number] == state);
        const isMarked = number === view.selected || (showPath && onPath.has(number));
        const isStrong = isMarked || tasks.state[number] === 1 || matches !== null;
        if (isStrong && isMatch) strong.push(number, left, top + 2 + line * 9, right - left, thick);
        else if (right > taken[line] + 0.5) {
          const colours = isMatch && !showPath ? full : dim;
          const grey = isMatch && !showPath ? packed(...block) : faint(block);
          bar(left, top + 2 + line * 9, right - left, thick,
            isBlock[number] ? grey : colours[tasks.name[number]]);
          taken[line] = right;
          drawn++;
        }
        if (right - left > 60 && thick > 8) texts.push([number, left, top + 2, right - left, thick]);
        if (isMarked) frames.push([number, left, top + 2 + line * 9, right - left, thick]);
      }
    }
    for (let place = 0; place < strong.length; place += 5) {
      const number = strong[place], [left, top, size, thick] = strong.slice(place + 1, place + 5);
      const colour = isBlock[number] ? packed(...block) : full[tasks.name[number]];
      bar(left, top, Math.max(size, 2), thick, tasks.state[number] === 1 ? FAILED : colour);
      drawn++;
    }
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.putImageData(image, 0, 0);
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.font = "12px system-ui, 'DejaVu Sans', sans-serif";
    pen.textBaseline = "middle";
    pen.fillStyle = INK;
    for (const [number, left, top, size, thick] of texts.slice(0, 500)) {
      write(data.names[tasks.name[number]], left + 4, top, size - 6, thick);
    }
    pen.strokeStyle = style("text");
    for (const [number, left, top, size, thick] of frames) {
      pen.lineWidth = number === view.selected ? 2 : 1;
      pen.strokeRect(left, top, Math.max(size, 2), thick);
    }
    // Labels and the axis, over what sticks out.
    pen.fillStyle = style("page");
    pen.fillRect(0, 0, LEFT - 4, high);
    pen.fillRect(0, 0, wide, TOP);
    pen.fillStyle = style("text");
    for (const row of layout) {
      const top = TOP + row.top - view.scroll;
      if (top >= TOP - row.height / 2 && top < high) write(row.label, 6, top, LEFT - 14, row.height);
    }
    axis(wide, high);
    const room = high - TOP;
    if (total() > room) { // how far it is scrolled
      pen.fillStyle = style("dim");
      pen.fillRect(wide - 5, TOP + (view.scroll / total()) * room, 4, Math.max(12, (room / total()) * room));
    }
    if (dragging && dragging.selects) {
      pen.fillStyle = "rgba(31, 111, 235, 0.2)";
      pen.fillRect(Math.min(dragging.x, dragging.now), TOP, Math.abs(dragging.now - dragging.x), high);
    }
    report.drawn = drawn;
  }

  function write(text, left, top, size, thick) {
    pen.save();
    pen.beginPath();
    pen.rect(left, top, size, thick);
    pen.clip();
    pen.fillText(text, left, top + thick / 2);
    pen.restore();
  }

  function axis(wide, high) {
    const rough = (view.to - view.from) / Math.max(2, width() / 110);
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
    pen.fillStyle = style("dim");
    pen.strokeStyle = style("line");
    pen.lineWidth = 1;
    for (let at = Math.ceil(view.from / step) * step; at <= view.to; at += step) {
      const x = toX(at);
      pen.beginPath();
      pen.moveTo(x, TOP - 4);
      pen.lineTo(x, high);
      pen.globalAlpha = 0.6;
      pen.stroke();
      pen.globalAlpha = 1;
      pen.fillText(time(at, step), x + 3, TOP / 2);
    }
  }

  /** The task at a point of the chart; -1 if there is none. */
  function taskAt(x, y) {
    if (x < LEFT || y < TOP) return -1;
    const depth = y - TOP + view.scroll;
    const row = layout.find((each) => depth >= each.top && depth < each.top + each.height);
    if (!row) return -1;
    const at = toTime(x), near = 2 * (view.to - view.from) / width();
    const line = row.lines > 1 ? Math.floor((depth - row.top - 2) / 9) : 0;
    let best = -1, distance = near;
    for (let place = firstVisible(row); place < row.members.length; place++) {
      const number = row.members[place], start = tasks.start[number];
      if (start > at + near) break;
      if (row.line[place] !== line) continue;
      const off = Math.max(start - at, at - start - tasks.duration[number], 0);
      if (off <= distance) { distance = off; best = number; }
    }
    return best;
  }

  // --- moving about ---
  const chart = byId("load");
  let told = false;
  function show(from, to, options = {}) {
    const span = Math.max(MIN_SPAN, to - from);
    const middle = (from + to) / 2;
    view.from = middle - span / 2;
    view.to = middle + span / 2;
    draw();
    if (!options.fromChart && !told) {
      told = true;
      requestAnimationFrame(() => {
        told = false;
        Plotly.relayout(chart, { "xaxis.range": [view.from / 1e6, view.to / 1e6] });
      });
    }
  }
  function zoom(factor, x = LEFT + width() / 2) {
    const at = toTime(x);
    const limit = home(), widest = limit.to - limit.from;
    const span = Math.min(widest, Math.max(MIN_SPAN, (view.to - view.from) * factor));
    const share = (at - view.from) / (view.to - view.from);
    show(at - share * span, at + (1 - share) * span);
  }
  const reset = () => { view.scroll = 0; show(home().from, home().to); };

  function select(number, { move = false } = {}) {
    view.selected = number;
    const box = byId("selected");
    box.hidden = number < 0;
    if (number < 0) return draw();
    const failure = failureOf.get(number);
    box.replaceChildren(element("b", data.names[tasks.name[number]]), ` ${describe(number)}`);
    if (failure) box.append(failureText(failure));
    if (move) {
      const size = Math.max(tasks.duration[number], 1);
      const row = layout.find((each) => each.members.includes(number));
      view.scroll = row.top - (frame.clientHeight - TOP) / 2;
      const { from, to } = home();
      show(Math.max(from, tasks.start[number] - 2 * size), Math.min(to, tasks.start[number] + 3 * size));
    }
    return draw();
  }
  function describe(number) {
    const uid = data.uids[number];
    return [
      uid || "", STATES[tasks.state[number]], `took ${time(tasks.duration[number])}`,
      `from ${time(tasks.start[number])}`, `on ${data.rows[tasks.row[number]]}`,
      `queued ${time(tasks.queued[number])}`,
      tasks.waited[number] ? `waited for others ${time(tasks.waited[number])}` : "",
    ].filter(Boolean).join(" · ");
  }
  function failureText(details) {
    const head = [details.error, details.message].filter(Boolean).join(": ");
    const code = details.exit_code ? `exit code ${details.exit_code}\n` : "";
    return element("pre", `${code}${head}${details.traceback ? `\n${details.traceback}` : ""}`, "failed");
  }

  let dragging = null;
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      const by = ((event.deltaX || event.deltaY) / width()) * (view.to - view.from);
      show(view.from + by, view.to + by);
    } else if (event.offsetX < LEFT) {
      view.scroll += event.deltaY;
      draw();
    } else zoom(event.deltaY > 0 ? 1.25 : 0.8, event.offsetX);
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    dragging = {
      x: event.offsetX, y: event.offsetY, now: event.offsetX, moved: false, selects: event.shiftKey,
      from: view.from, to: view.to, scroll: view.scroll,
    };
  });
  canvas.addEventListener("pointermove", (event) => {
    const tip = byId("tip");
    if (dragging) {
      tip.hidden = true;
      dragging.now = event.offsetX;
      const far = event.offsetX - dragging.x;
      dragging.moved ||= Math.abs(far) + Math.abs(event.offsetY - dragging.y) > 3;
      if (dragging.selects) return draw();
      const by = (far / width()) * (dragging.to - dragging.from);
      view.scroll = dragging.scroll - (event.offsetY - dragging.y);
      return show(dragging.from - by, dragging.to - by);
    }
    const number = taskAt(event.offsetX, event.offsetY);
    tip.hidden = number < 0;
    if (number >= 0) {
      tip.textContent = `${data.names[tasks.name[number]]}\n${describe(number)}`;
      tip.style.left = `${Math.min(event.offsetX + 12, frame.clientWidth - 300)}px`;
      tip.style.top = `${Math.min(event.offsetY + 12, frame.clientHeight - 60)}px`;
    }
    return undefined;
  });
  canvas.addEventListener("pointerup", (event) => {
    const ended = dragging;
    dragging = null;
    if (!ended) return;
    if (!ended.moved) select(taskAt(event.offsetX, event.offsetY));
    else if (ended.selects) show(...[toTime(ended.x), toTime(event.offsetX)].sort((a, b) => a - b));
  });
  canvas.addEventListener("pointerleave", () => { byId("tip").hidden = true; });
  canvas.addEventListener("dblclick", reset);
  canvas.addEventListener("keydown", (event) => {
    const by = 0.2 * (view.to - view.from);
    const act = {
      "+": () => zoom(0.7), "-": () => zoom(1.4), Home: reset, Escape: () => select(-1),
      ArrowLeft: () => show(view.from - by, view.to - by),
      ArrowRight: () => show(view.from + by, view.to + by),
      ArrowUp: () => { view.scroll -= 40; draw(); }, ArrowDown: () => { view.scroll += 40; draw(); },
    }[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  byId("zoom-in").addEventListener("click", () => zoom(0.5));
  byId("zoom-out").addEventListener("click", () => zoom(2));
  byId("reset").addEventListener("click", reset);
  byId("state").addEventListener("change", draw);
  byId("show-path").addEventListener("change", draw);
  byId("rows").addEventListener("change", (event) => group(event.target.value));
  function group(kind) {
    byId("rows").value = view.rows = kind;
    layout = arrange(kind);
    view.scroll = 0;
    draw();
  }

  // --- search ---
  function search(text) {
    const wanted = text.trim().toLowerCase();
    match = -1;
    matches = null;
    let found = 0;
    if (wanted) {
      const named = data.names.map((name) => name.toLowerCase().includes(wanted));
      matches = new Uint8Array(count);
      for (let number = 0; number < count; number++) {
        const uid = data.uids[number], failure = failureOf.get(number);
        if (named[tasks.name[number]] || (uid && uid.toLowerCase().includes(wanted))
          || (failure && `${failure.error}: ${failure.message}`.toLowerCase().includes(wanted))) {
          matches[number] = 1;
          found++;
        }
      }
    }
    byId("found").textContent = wanted ? `${whole(found)} found` : "";
    draw();
    return found;
  }
  function next() {
    if (!matches) return;
    match = matches.indexOf(1, match + 1);
    if (match < 0) match = matches.indexOf(1);
    if (match >= 0) select(match, { move: true });
  }
  byId("search").addEventListener("input", (event) => search(event.target.value));
  byId("search").addEventListener("keydown", (event) => { if (event.key === "Enter") next(); });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target.closest("input, select")) return;
    event.preventDefault();
    byId("search").focus();
  });

  // --- load over time ---
  const bins = data.load.running.map((_, number) => ((number + 0.5) * data.load.width_us) / 1e6);
  const line = (name, values, axisName, extra = {}) => ({
    x: bins, y: values, name, mode: "lines", yaxis: axisName, line: { width: 1.3, shape: "hvh" }, ...extra,
  });
  const chartColours = () => ({
    paper_bgcolor: "rgba(0, 0, 0, 0)", plot_bgcolor: "rgba(0, 0, 0, 0)", "font.color": style("text"),
    ...Object.fromEntries(["xaxis", "yaxis", "yaxis2", "yaxis3"].flatMap((axisName) => [
      [`${axisName}.gridcolor`, style("line")], [`${axisName}.zerolinecolor`, style("line")],
    ])),
  });
  Plotly.newPlot(chart, [
    line("running", data.load.running, "y", { fill: "tozeroy" }),
    line("queued", data.load.queued, "y2"),
    line("ended/s", data.load.ended, "y3"),
  ], {
    margin: { l: LEFT, r: 2, t: 24, b: 38 }, showlegend: true, dragmode: "zoom",
    legend: { orientation: "h", y: 1.13 },
    xaxis: { title: { text: "seconds" }, anchor: "y3", range: [view.from / 1e6, view.to / 1e6] },
    yaxis: { domain: [0.7, 1], rangemode: "tozero", title: { text: "running" }, fixedrange: true },
    yaxis2: { domain: [0.36, 0.64], rangemode: "tozero", title: { text: "queued" }, fixedrange: true },
    yaxis3: { domain: [0, 0.3], rangemode: "tozero", title: { text: "ended/s" }, fixedrange: true },
  }, { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] });
  Plotly.relayout(chart, chartColours());
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    readColours();
    draw();
    Plotly.relayout(chart, chartColours());
  });
  chart.on("plotly_relayout", (change) => {
    if (change["xaxis.autorange"]) return reset();
    const from = change["xaxis.range[0]"], to = change["xaxis.range[1]"];
    if (from !== undefined) show(from * 1e6, to * 1e6, { fromChart: true });
    return undefined;
  });

  // --- tables ---
  const name = (number) => data.names[tasks.name[number]];
  const row = (number, cells) => ({ task: number, cells });
  const TABLES = {
    "Critical path": {
      note: () => {
        const { path, work_us, between_us } = data.totals;
        const cut = path > data.path.length ? `; the last ${whole(data.path.length)} are listed` : "";
        return `${whole(path)} steps: ${time(work_us)} at work, ${time(between_us)} between them${cut}`;
      },
      columns: ["task", "began because", "waited#", "took#", "ended at#"],
      rows: () => data.path.map(([number, reason, wait]) => row(number, [
        name(number), reason, time(wait), time(tasks.duration[number]),
        time(tasks.start[number] + tasks.duration[number]),
      ])),
    },
    "By name": {
      note: () => "",
      columns: ["task", "count#", "total#", "median#", "95 %#", "longest#", "queued in all#", "failed#"],
      rows: () => data.statistics.map((each) => ({ cells: [
        data.names[each.name], whole(each.count), time(each.total), time(each.median), time(each.p95),
        time(each.longest), time(each.queued), each.failed ? whole(each.failed) : "",
      ] })),
    },
    Slowest: {
      note: () => "",
      columns: ["task", "uid", "took#", "queued#", "began at#", "where", "state"],
      rows: () => data.slowest.map((number) => row(number, [
        name(number), data.uids[number] || "", time(tasks.duration[number]), time(tasks.queued[number]),
        time(tasks.start[number]), data.rows[tasks.row[number]], STATES[tasks.state[number]],
      ])),
    },
    Failures: {
      note: () => `${whole(data.totals.failures)} in all`,
      columns: ["task", "uid", "at#", "why"],
      rows: () => data.failures.map(([number, details]) => row(number, [
        name(number), data.uids[number] || "", time(tasks.start[number] + tasks.duration[number]),
        failureText(details),
      ])),
    },
    "Dependency waits": {
      note: () => "By whose end the waiting was over, and how long it was",
      columns: ["task", "waited for", "times#", "in all#", "longest#"],
      rows: () => data.waits.map((wait) => ({ cells: [
        wait.waiter, wait.awaited, whole(wait.count), time(wait.total), time(wait.longest),
      ] })),
    },
  };
  function tab(title) {
    for (const button of byId("tabs").children) {
      button.setAttribute("aria-selected", String(button.dataset.tab === title));
      button.tabIndex = button.dataset.tab === title ? 0 : -1;
    }
    const { note, columns, rows } = TABLES[title];
    const table = element("table"), head = table.createTHead().insertRow(), body = table.createTBody();
    const numeric = columns.map((column) => column.endsWith("#"));
    columns.forEach((column, place) => {
      head.append(element("th", column.replace("#", ""), numeric[place] ? "number" : ""));
    });
    for (const { task, cells } of rows()) {
      const line_ = body.insertRow();
      if (task !== undefined) {
        line_.dataset.task = task;
        line_.tabIndex = 0;
      }
      cells.forEach((cell, place) => {
        const made = line_.insertCell();
        if (numeric[place]) made.className = "number";
        made.append(cell);
      });
    }
    byId("table-frame").replaceChildren(element("p", note(), "hint"), table);
  }
  for (const title of Object.keys(TABLES)) {
    const button = element("button", title);
    button.type = "button";
    button.dataset.tab = title;
    button.setAttribute("role", "tab");
    button.addEventListener("click", () => tab(title));
    byId("tabs").append(button);
  }
  byId("table-frame").addEventListener("click", (event) => {
    const chosen = event.target.closest("tr[data-task]");
    if (chosen) select(Number(chosen.dataset.task), { move: true });
  });
  byId("table-frame").addEventListener("keydown", (event) => {
    if (event.key === "Enter") event.target.click();
  });
  byId("tabs").addEventListener("keydown", (event) => {
    const buttons = [...byId("tabs").children], by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    const chosen = buttons.at((buttons.indexOf(document.activeElement) + by) % buttons.length);
    tab(chosen.dataset.tab);
    chosen.focus();
  });

  window.addEventListener("resize", draw);
  const report = { view, search, next, show, zoom, reset, select, group, tab, paint, taskAt, toX, time, drawn: 0 };
  window.report = report;
  group("worker");
  tab(data.totals.failures ? "Failures" : "Critical path");
  paint();
})();
