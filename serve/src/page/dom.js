// Creates elements. Text always becomes a text node: nothing in this page is parsed as HTML.

const SVG = 'http://www.w3.org/2000/svg';

/** The element with this id. */
export const byId = (id) => document.getElementById(id);

/** Creates an element. `properties` are properties of the element; those with `-` and `role` are attributes. Children
 * are elements and texts; null and false are left out. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (name.includes('-') || name === 'role') element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A line icon of 20 × 20 units that assistive technology skips. */
export function icon(path) {
  const svg = document.createElementNS(SVG, 'svg');
  svg.setAttribute('viewBox', '0 0 20 20');
  svg.setAttribute('aria-hidden', 'true');
  const line = document.createElementNS(SVG, 'path');
  line.setAttribute('d', path);
  svg.append(line);
  return svg;
}

/** Tells assistive technology what has happened. */
export function announce(text) {
  byId('live').textContent = text;
}

/** Copies text. Without access to the clipboard (pages that are served over plain HTTP from another machine), copies
 * by a selected text field. Returns whether it worked. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = make('textarea', { value: text, className: 'hidden' });
    document.body.append(field);
    field.select();
    const done = document.execCommand('copy');
    field.remove();
    return done;
  }
}

/** A button that copies what `text()` returns and says so. */
export function copyButton(label, text) {
  const button = make('button', { type: 'button', className: 'quiet', textContent: label });
  button.addEventListener('click', async () => {
    const done = await copy(await text());
    button.textContent = done ? 'Copied' : 'Cannot copy';
    if (done) announce(`${label}: copied`);
    setTimeout(() => (button.textContent = label), 1200);
  });
  return button;
}

/** A number with thin spaces between groups of three digits. */
export const grouped = (number) => String(number).replace(/\B(?=(\d{3})+$)/g, '\u2009');

/** A number of bytes as text. */
export function bytes(count) {
  if (count < 1024) return `${count} B`;
  if (count < 1 << 20) return `${(count / 1024).toFixed(0)} KiB`;
  return `${(count / (1 << 20)).toFixed(1)} MiB`;
}

/** Seconds as text, with a precision that fits their size. */
export function seconds(value) {
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  return value < 100 ? `${value.toFixed(1)} s` : `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
}
