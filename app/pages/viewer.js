// Runs once per component, with Gradio's `element`, `props` and `watch`. Zoom is relative to "fit"; the centre of the view is a share of the
// picture, so one state places pictures of any size. Layout needs only the sizes in the value, never a loaded picture.

const BLINK_MS = 600, STEP = 1.5, LARGEST_SCALE = 32, PAN_SHARE = 0.1;
const find = (selector) => element.querySelector(selector);
const all = (selector) => [...element.querySelectorAll(selector)];
const root = find('.pair-viewer'), stage = find('.stage'), canvas = find('canvas');
const views = all('.view'), images = all('img'), captions = all('figcaption'), outlines = all('.outline'), radios = all('[name=view]');
const [divider, opacity, sensitivity] = ['divider', 'opacity', 'sensitivity'].map((name) => find(`[name=${name}]`));
const still = matchMedia('(prefers-reduced-motion: reduce)');
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const say = (value, digits = 3) => Number(value.toPrecision(digits)).toLocaleString('en-GB', { maximumFractionDigits: 8 });

let pair = null, zoom = 1, centre = [0.5, 0.5], before = 'side', playing = true, timer = 0;
let levels = null, largest = 0; // |context - confounder| of `pair` as RGBA, once computed

const sizeOf = (index) => [pair.sides[index % 2].width_px, pair.sides[index % 2].height_px]; // 2 is the difference
const sameSize = () => String(sizeOf(0)) === String(sizeOf(1));
const mode = () => root.dataset.mode;

// ---------------------------------------------------------------- zoom and position

function frame() {
  const box = views.map((view) => view.getBoundingClientRect()).find(({ width }) => width > 0);
  return box && [box.width, box.height];
}

const fitted = (index, space) => Math.min(...sizeOf(index).map((extent, axis) => space[axis] / extent));
const oneToOne = () => 1 / (fitted(0, frame()) * devicePixelRatio);
const extents = (scale) => sizeOf(0).map((extent) => extent * fitted(0, frame()) * scale); // of the first picture, in px

function layout() {
  const space = pair && frame();
  if (!space) return;
  for (const [index, picture] of [...images, canvas].entries()) {
    const scale = fitted(index, space) * zoom, [width, height] = sizeOf(index).map((extent) => extent * scale);
    const [left, top] = [width, height].map((extent, axis) => place(space[axis], extent, centre[axis]));
    setBox(picture, { left, top, width, height });
    picture.style.imageRendering = scale * devicePixelRatio > 1 ? 'pixelated' : 'auto';
    placeOutline(outlines[index], left, top, scale);
  }
  stage.classList.toggle('zoomed', zoom > 1);
  find('.zoom output').textContent = `${say((zoom / oneToOne()) * 100)} %`;
}

const place = (space, extent, at) => (extent <= space ? (space - extent) / 2 : clamp(space / 2 - at * extent, space - extent, 0));

// A box, not a transform: boxes are drawn on whole screen pixels, so that 1:1 shows the stored pixels unblended.
function setBox(target, box) {
  for (const [name, value] of Object.entries(box)) target.style[name] = `${value}px`;
}

function placeOutline(outline, x, y, scale) {
  const { region } = pair, margin = 3; // px, so that the line lies beside what differs
  outline.hidden = !region || !find('[name=outlines]').checked;
  if (outline.hidden) return;
  const [left, top] = [x + region.left_px * scale - margin, y + region.top_px * scale - margin];
  const width = (region.right_px - region.left_px) * scale + 2 * margin;
  setBox(outline, { left, top, width, height: (region.bottom_px - region.top_px) * scale + 2 * margin });
}

// `at`: the point of the view, in px from its middle, whose picture pixel stays where it is.
function zoomTo(wanted, at = [0, 0]) {
  const next = clamp(wanted, Math.min(1, oneToOne()), Math.max(1, LARGEST_SCALE * oneToOne()));
  const [from, to] = [extents(zoom), extents(next)];
  moveTo(centre.map((share, axis) => share + at[axis] / from[axis] - at[axis] / to[axis]), next);
}

function moveTo(shares, next = zoom) {
  zoom = next;
  const halves = frame().map((space, axis) => space / (2 * extents(zoom)[axis]));
  centre = shares.map((share, axis) => (halves[axis] < 0.5 ? clamp(share, halves[axis], 1 - halves[axis]) : 0.5));
  layout();
}

const panBy = (pixels) => moveTo(centre.map((share, axis) => share + pixels[axis] / extents(zoom)[axis]));

const zooms = {
  in: () => zoomTo(zoom * STEP),
  out: () => zoomTo(zoom / STEP),
  one: () => zoomTo(oneToOne()),
  fit: () => moveTo([0.5, 0.5], 1),
};
for (const button of all('[data-zoom]')) button.addEventListener('click', zooms[button.dataset.zoom]);
stage.addEventListener('dblclick', zooms.fit);

stage.addEventListener('wheel', (event) => {
  const view = event.target.closest('.view');
  if (!view || (zoom <= 1 && event.deltaY > 0)) return; // nothing to zoom out of: the page scrolls
  event.preventDefault();
  const { left, top, width, height } = view.getBoundingClientRect();
  const px = event.deltaY * (event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 30 : 1);
  zoomTo(Math.max(1, zoom * 1.002 ** -px), [event.clientX - left - width / 2, event.clientY - top - height / 2]);
}, { passive: false });

stage.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const act = { '+': zooms.in, '=': zooms.in, '-': zooms.out, 0: zooms.fit }[event.key];
  const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!act && !(way && zoom > 1)) return; // nothing to move: the key is the page's
  event.preventDefault();
  event.stopPropagation();
  if (act) act();
  else panBy(way.map((sign, axis) => sign * frame()[axis] * PAN_SHARE));
});

let held = null; // what the pointer drags: the divider or the pictures
stage.addEventListener('pointerdown', (event) => {
  if (event.button !== 0 || !event.target.closest('.view')) return;
  held = { divider: event.target.matches('.divider'), x: event.clientX, y: event.clientY };
  stage.setPointerCapture(event.pointerId);
  stage.classList.toggle('dragged', !held.divider);
});
stage.addEventListener('pointermove', (event) => {
  if (!held) return;
  if (held.divider) {
    const { left, width } = find('.b .view').getBoundingClientRect();
    divider.value = clamp(((event.clientX - left) / width) * 100, 0, 100);
    applySettings();
  } else panBy([held.x - event.clientX, held.y - event.clientY]);
  Object.assign(held, { x: event.clientX, y: event.clientY });
});
for (const ending of ['pointerup', 'pointercancel']) {
  stage.addEventListener(ending, () => { held = null; stage.classList.remove('dragged'); });
}

// ---------------------------------------------------------------- views

function setMode(next) {
  if (next !== mode()) before = mode();
  root.dataset.mode = next;
  root.dataset.seen = 'a';
  for (const radio of radios) radio.checked = radio.value === next;
  blink();
  if (next === 'difference') showDifference();
  layout();
}

const gain = () => 2 ** sensitivity.value;

function applySettings() {
  for (const [input, text] of [[divider, `${divider.value} %`], [opacity, `${opacity.value} %`], [sensitivity, `× ${gain()}`]]) {
    input.nextElementSibling.textContent = text;
    input.setAttribute('aria-valuetext', text);
    stage.style.setProperty(`--${input.name}`, `${input.value}%`);
  }
  if (mode() === 'difference') drawDifference();
  layout();
}

const flip = () => { root.dataset.seen = root.dataset.seen === 'a' ? 'b' : 'a'; };

function blink() {
  clearInterval(timer);
  find('[data-blink=play]').hidden = still.matches;
  find('[data-blink=play]').textContent = playing ? 'Pause' : 'Play';
  if (pair && mode() === 'blink' && playing && !still.matches) timer = setInterval(flip, BLINK_MS);
}

// Resolves only for the pair that is still shown: a slow picture must not be drawn over the next pair.
async function showDifference() {
  const wanted = pair;
  if (!sameSize()) return describe(2, 'No difference: the sizes differ, so pixels do not correspond.');
  if (levels) return drawDifference();
  describe(2, 'Loading');
  const loaded = await Promise.all(images.map((image) => image.decode())).catch(() => null);
  if (wanted !== pair) return;
  if (!loaded) return describe(2, 'No difference: a picture did not load.');
  const [one, other] = images.map(pixels);
  levels = one.map((value, index) => Math.abs(value - other[index])); // 0 in the opacity, as both pictures are opaque
  largest = levels.reduce((most, value) => (value > most ? value : most), 0);
  drawDifference();
}

function pixels(image, index) {
  const [width, height] = sizeOf(index);
  const context = new OffscreenCanvas(width, height).getContext('2d', { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, width, height).data;
}

function drawDifference() {
  if (!levels) return;
  const factor = gain(); // what passes 255 is clamped by the array
  const drawn = new ImageData(levels.map((value, index) => ((index & 3) === 3 ? 255 : value * factor)), canvas.width);
  canvas.getContext('2d').putImageData(drawn, 0, 0);
  describe(2, `Difference × ${factor}; the largest is ${largest} of 255 grey levels`);
}

function describe(index, text) {
  captions[index].textContent = text;
  if (index === 2) canvas.setAttribute('aria-label', text);
}

for (const radio of radios) {
  radio.name = `view-${element.id}`; // two viewers on a page are two groups
  radio.addEventListener('change', () => setMode(radio.value));
}
find('.settings').addEventListener('input', applySettings);
find('[data-blink=flip]').addEventListener('click', () => { playing = false; blink(); flip(); });
find('[data-blink=play]').addEventListener('click', () => { playing = !playing; blink(); });
still.addEventListener('change', blink);

const isText = (target) => target.closest?.('textarea, select, [contenteditable], input:not([type=radio], [type=range], [type=checkbox])');
document.addEventListener('keydown', function shortcut(event) {
  if (!element.isConnected) return document.removeEventListener('keydown', shortcut);
  const next = { b: 'blink', d: 'difference' }[event.key];
  if (!next || event.ctrlKey || event.metaKey || event.altKey || event.repeat || isText(event.target)) return;
  if (root.offsetParent && !document.querySelector('dialog[open]')) setMode(mode() === next ? before : next);
});

// ---------------------------------------------------------------- the value

function show() {
  pair = props.value?.sides ? props.value : null;
  root.hidden = !pair;
  levels = null;
  if (!pair) return blink();
  root.dataset.key = pair.key;
  for (const [index, { url, alt, width_px, height_px }] of pair.sides.entries()) {
    images[index].style.visibility = 'hidden'; // until loaded: the last pair's picture must not stand under this one's caption
    images[index].setAttribute('src', url);
    images[index].setAttribute('alt', alt);
    describe(index, sameSize() ? alt : `${alt} (${width_px} × ${height_px} px)`);
  }
  [canvas.width, canvas.height] = sizeOf(0);
  const [width, height] = [0, 1].map((axis) => Math.max(sizeOf(0)[axis], sizeOf(1)[axis]));
  stage.style.setProperty('--aspect', width / height);
  find('.region').textContent = regionText();
  [zoom, centre] = [1, [0.5, 0.5]];
  setMode(mode());
}

function regionText() {
  const { region } = pair, [width, height] = sizeOf(0);
  if (!sameSize()) return 'The pictures have different sizes.';
  if (!region) return 'No pixel differs.';
  const box = `${region.right_px - region.left_px} × ${region.bottom_px - region.top_px} px`;
  const count = Math.round(region.share * width * height).toLocaleString('en-GB');
  return `${say(region.share * 100)} % of the pixels differ (${count}), in a box of ${box} at (${region.left_px}, ${region.top_px}).`;
}

for (const [index, image] of images.entries()) {
  image.addEventListener('load', () => { image.style.visibility = ''; });
  image.addEventListener('error', () => describe(index, `${image.alt}: the picture did not load`));
}
new ResizeObserver(layout).observe(stage);
watch('value', show);
show();
