// The settings drawer: its fields, their storage, and the fields of requests that they stand for.

import { apiKey, setApiKey } from './api.js';
import { byId, make } from './dom.js';

const STORED = 'reel.settings';

/** Fields of a group: name, label, unit or hint, step, and minimum. An empty field is not sent. */
const SAMPLING = [
  ['temperature', 'Temperature', '0 is greedy', 0.1, 0],
  ['top_p', 'Top p', 'above 0, up to 1', 0.05, 0],
  ['top_k', 'Top k', 'tokens', 1, 0],
  ['repetition_penalty', 'Repetition penalty', '1 is none', 0.05, 0],
  ['max_completion_tokens', 'Max tokens', 'of an answer', 64, 1],
  ['seed', 'Seed', 'else random', 1, 0],
];
const VIDEO = [
  ['fps', 'Frames per second', 'fps', 0.5, 0],
  ['nframes', 'Number of frames', 'nframes, in place of fps', 2, 2],
  ['min_frames', 'Min frames', 'min_frames', 2, 2],
  ['max_frames', 'Max frames', 'max_frames', 2, 2],
  ['video_start', 'Start', 'video_start, seconds', 0.5, 0],
  ['video_end', 'End', 'video_end, seconds', 0.5, 0],
];
const SIZE = [
  ['min_pixels', 'Min pixels', 'min_pixels, per frame', 784, 1],
  ['max_pixels', 'Max pixels', 'max_pixels, per frame', 784, 1],
];
const GROUPS = [
  ['Sampling', 'Empty fields are left to the server.', SAMPLING],
  ['Video frames', 'Keys of qwen-vl-utils, for media in the question field.', VIDEO],
  ['Image and frame size', 'Height × width; the model has one token for each 28 × 28 pixels of a frame pair.', SIZE],
];

const values = (() => {
  try {
    return JSON.parse(localStorage.getItem(STORED)) ?? {};
  } catch {
    return {};
  }
})();

function store() {
  try {
    localStorage.setItem(STORED, JSON.stringify(values));
  } catch {
    // Without storage the settings last as long as the page.
  }
}

const numbers = (fields) =>
  Object.fromEntries(fields.filter(([name]) => Number.isFinite(values[name])).map(([name]) => [name, values[name]]));

/** The system prompt; empty if there is none. */
export const systemPrompt = () => (values.system ?? '').trim();

/** The sampling fields of a chat request. */
export const samplingFields = () => numbers(SAMPLING);

/** The keys of qwen-vl-utils for a medium of this kind. */
export const mediaKeys = (kind) => numbers(kind === 'video' ? [...VIDEO, ...SIZE] : SIZE);

/** Fills the drawer. Calls `onChange({media, key})`: whether settings of media, or the API key, have changed. */
export function showSettings(onChange) {
  const groups = GROUPS.map(([title, note, fields]) => {
    const isMedia = fields !== SAMPLING;
    const inputs = fields.map((field) => numberField(field, () => onChange({ media: isMedia, key: false })));
    return make('fieldset', {}, make('legend', { textContent: title }), make('p', { className: 'note' }, note), inputs);
  });
  const system = make('textarea', { id: 'system', rows: 4, value: values.system ?? '', placeholder: 'none' });
  system.addEventListener('input', () => {
    values.system = system.value;
    store();
  });
  const key = make('input', { id: 'key', type: 'password', autocomplete: 'off', spellcheck: false, value: apiKey() });
  key.placeholder = 'none';
  key.addEventListener('change', () => {
    setApiKey(key.value.trim());
    onChange({ media: true, key: true });
  });
  const reset = make('button', { type: 'button', className: 'quiet', textContent: 'Reset all settings' });
  reset.addEventListener('click', () => {
    for (const name of Object.keys(values)) delete values[name];
    store();
    showSettings(onChange);
    onChange({ media: true, key: false });
  });
  byId('fields').replaceChildren(
    make('label', { className: 'wide' }, 'System prompt', system),
    ...groups,
    make('label', { className: 'wide' }, 'API key', key),
    make('p', { className: 'note' }, 'Kept until this tab is closed.'),
    reset,
  );
}

function numberField([name, label, hint, step, min], onChange) {
  // The step is for the arrows only: the server says which values it accepts.
  const input = make('input', { id: `set-${name}`, type: 'number', inputMode: 'decimal', min, placeholder: 'default' });
  input.step = 'any';
  input.value = values[name] ?? '';
  const changed = () => {
    const number = input.valueAsNumber;
    if (Number.isFinite(number)) values[name] = number;
    else delete values[name];
    store();
    onChange();
  };
  input.addEventListener('input', changed);
  input.addEventListener('keydown', (event) => {
    const direction = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (!direction) return;
    event.preventDefault();
    const from = Number.isFinite(input.valueAsNumber) ? input.valueAsNumber : min;
    input.value = Math.max(min, Number((from + direction * step).toFixed(6)));
    changed();
  });
  const text = make('span', {}, `${label} `, make('small', { textContent: hint }));
  return make('label', { className: 'number', htmlFor: input.id }, text, input);
}
