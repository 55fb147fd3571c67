// Videos and images: files of the user, what the model sees of them, and how both are shown.

import { preview } from './api.js';
import { bytes, grouped, icon, make } from './dom.js';
import { mediaPart } from './request.js';
import { mediaKeys } from './settings.js';

/** Time to wait after a change of settings before the server is asked for the frames, in milliseconds. */
const PREVIEW_DELAY = 350;
/** Endings of names of videos for which browsers do not know the type. */
const VIDEO_ENDINGS = /\.(mkv|avi|mov|m4v|ts|mpg|mpeg|flv|ogv|webm|mp4|h264|hevc|ivf)$/i;

/** An identifier that no other record has. */
export function newId() {
  const numbers = crypto.getRandomValues(new Uint32Array(4));
  return Array.from(numbers, (number) => number.toString(36)).join('-');
}

/** `video`, `image`, or null for another file. A GIF with several frames is a video. */
async function kindOf(file) {
  if (file.type === 'image/gif') return (await hasSeveralFrames(file)) ? 'video' : 'image';
  if (file.type.startsWith('video/') || VIDEO_ENDINGS.test(file.name)) return 'video';
  return file.type.startsWith('image/') ? 'image' : null;
}

/** Whether a GIF has several frames: each of them follows a graphic control extension, the bytes 21 F9 04. */
async function hasSeveralFrames(gif) {
  const data = new Uint8Array(await gif.arrayBuffer());
  let count = 0;
  for (let i = data.indexOf(0x21); i >= 0 && count < 2; i = data.indexOf(0x21, i + 1)) {
    if (data[i + 1] === 0xf9 && data[i + 2] === 0x04 && data[i + 7] === 0) count += 1;
  }
  return count > 1;
}

/** The `data:` URI of a file. */
export function dataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error('the file cannot be read; attach it again'));
    reader.readAsDataURL(blob);
  });
}

/** A medium that is attached to a question. */
export class Medium {
  /** A medium of a file, or null if the file is neither a video nor an image. */
  static async fromFile(file) {
    const kind = await kindOf(file);
    if (!kind) return null;
    const type = file.type || 'application/octet-stream';
    const name = file.name || (kind === 'video' ? 'video' : 'image');
    return new Medium({ id: newId(), name, type, size: file.size, kind, keys: mediaKeys(kind) }, file, null);
  }

  /** `facts` are what a conversation stores: id, name, type, size, kind and keys. `blob` is the file, or null if it is
   * not stored any more; `seen` is what the model sees, or null. */
  constructor(facts, blob, seen) {
    Object.assign(this, { facts, blob, seen, error: null, waiting: null, abort: null });
    this.source = blob ? URL.createObjectURL(blob) : null;
    // Made once: a card that is drawn anew neither stops the player nor brings back one that cannot play.
    this.player = player(this);
    this.onChange = () => {};
  }

  /** Asks the server what the model sees, with the settings of now. */
  look(delay = 0) {
    this.facts.keys = mediaKeys(this.facts.kind);
    this.abort?.abort();
    clearTimeout(this.waiting);
    this.error = null;
    this.waiting = setTimeout(() => this.#ask(), delay);
    this.onChange();
  }

  /** Asks again after a change of settings. */
  settingsChanged() {
    if (JSON.stringify(mediaKeys(this.facts.kind)) !== JSON.stringify(this.facts.keys)) this.look(PREVIEW_DELAY);
  }

  async #ask() {
    const abort = new AbortController();
    this.abort = abort;
    try {
      const part = mediaPart(this.facts, await dataUri(this.blob));
      const answer = await preview({ messages: [{ role: 'user', content: [part] }] }, abort.signal);
      if (abort.signal.aborted) return;
      this.seen = answer.media[0];
    } catch (error) {
      if (abort.signal.aborted) return;
      this.seen = null;
      this.error = error;
    }
    this.waiting = null;
    this.onChange();
  }

  /** Stops a question to the server, and frees the file for the player. */
  close() {
    this.abort?.abort();
    clearTimeout(this.waiting);
    if (this.source) URL.revokeObjectURL(this.source);
  }
}

/** Size and number of tokens, as one line. */
function facts(medium) {
  const { seen } = medium;
  if (medium.error) return '';
  if (!seen) return medium.waiting ? 'reading the frames …' : '';
  const frames = seen.kind === 'video' ? `${seen.frames} frames · ` : '';
  const grid = `grid ${seen.grid_thw.join(' × ')}`;
  return `${frames}${seen.width} × ${seen.height} px · ${grid} · ${grouped(seen.vision_tokens)} tokens`;
}

/** The player or the image itself, and its video. Both are removed if the browser cannot play the video; its frames are
 * there. */
function player(medium) {
  const { facts: { kind, name, type }, source } = medium;
  if (!source) return {};
  if (kind === 'image' || type === 'image/gif') {
    return { element: make('div', { className: 'player' }, make('img', { src: source, alt: name })) };
  }
  const video = make('video', { src: source, muted: true, loop: true, playsInline: true, preload: 'metadata' });
  video.setAttribute('aria-label', name);
  const button = make('button', { type: 'button', className: 'play', 'aria-label': `Play ${name}` });
  const symbol = () => button.replaceChildren(icon(video.paused ? 'M7 5l8 5-8 5z' : 'M7.5 5.5v9M12.5 5.5v9'));
  button.addEventListener('click', () => (video.paused ? video.play() : video.pause()));
  for (const event of ['play', 'pause']) video.addEventListener(event, symbol);
  symbol();
  const element = make('div', { className: 'player' }, video, button);
  video.addEventListener('error', () => {
    element.remove();
    medium.player = {};
  });
  return { element, video };
}

/** The frames that the model sees, with their times. A click on one moves the player to its time. */
function frames(medium, video) {
  const { seen } = medium;
  if (!seen?.thumbnails.length) return null;
  const items = seen.thumbnails.map(({ frame, url }) => {
    const time = seen.timestamps[frame];
    const label = time === undefined ? '' : `${time.toFixed(2)} s`;
    const image = make('img', { src: url, alt: label ? `frame at ${label}` : 'the image as the model sees it' });
    const figure = make('figure', {}, image, make('figcaption', { textContent: label }));
    if (!video || time === undefined) return make('li', {}, figure);
    const button = make('button', { type: 'button', title: `Go to ${label}` }, figure);
    button.addEventListener('click', () => {
      video.pause();
      video.currentTime = time;
    });
    return make('li', {}, button);
  });
  const shown = items.length < seen.frames ? `, ${items.length} of ${seen.frames}` : '';
  const label = `Frames that the model sees${shown}`;
  return make('ol', { className: 'frames', tabIndex: 0, 'aria-label': label }, items);
}

/** The card of a medium. `onRemove` is null if it can't be removed. */
export function mediumCard(medium, onRemove = null) {
  const { facts: file } = medium;
  const title = make('b', { textContent: file.name, title: file.name });
  const keys = Object.entries(file.keys).map(([key, value]) => `${key} ${value}`).join(', ');
  const { element, video } = medium.player;
  const head = make('div', { className: 'head' }, title, make('small', { textContent: bytes(file.size) }));
  if (onRemove) {
    const button = make('button', { type: 'button', className: 'icon', 'aria-label': `Remove ${file.name}` });
    button.append(icon('M6 6l8 8M14 6l-8 8'));
    button.addEventListener('click', onRemove);
    head.append(button);
  }
  const error = medium.error && make('p', { className: 'error', role: 'alert' }, medium.error.message);
  const lost = 'The file is not stored any more; to ask further, attach it again.';
  const gone = !medium.blob && make('p', { className: 'note' }, lost);
  const body = make('div', { className: 'about' }, head, make('p', { className: 'facts' }, facts(medium)));
  if (keys) body.append(make('p', { className: 'facts keys' }, keys));
  body.append(...[error, gone, frames(medium, video)].filter(Boolean));
  return make('div', { className: medium.waiting ? 'medium waiting' : 'medium' }, element, body);
}
