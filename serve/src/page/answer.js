// Splits the text of a model into thinking, answer and other text, and shows it. All of it is shown as text.

import { make, seconds } from './dom.js';

const TAGS = ['<think>', '</think>', '<answer>', '</answer>'];

/** Splits text at its tags into `{kind: 'think' | 'answer' | 'text', text, open}`. `open` is true for the last part if
 * its end tag is missing. While the text streams, an incomplete tag at its end is left out. Text before a `</think>`
 * without `<think>` is thinking: some chat templates write `<think>` into the prompt. */
export function split(text, streaming = false) {
  let rest = streaming ? withoutPartialTag(text) : text;
  const parts = [];
  const add = (kind, piece, open) => {
    if (piece.trim() || (open && streaming)) parts.push({ kind, text: piece.trim(), open });
  };
  const firstEnd = rest.indexOf('</think>');
  const firstStart = rest.indexOf('<think>');
  if (firstEnd >= 0 && (firstStart < 0 || firstStart > firstEnd)) {
    add('think', rest.slice(0, firstEnd), false);
    rest = rest.slice(firstEnd + '</think>'.length);
  }
  while (rest) {
    const start = rest.search(/<(think|answer)>/);
    if (start < 0) {
      add('text', rest, false);
      break;
    }
    add('text', rest.slice(0, start), false);
    const kind = rest.startsWith('<think>', start) ? 'think' : 'answer';
    rest = rest.slice(start + kind.length + 2);
    const end = rest.indexOf(`</${kind}>`);
    // Thinking without an end tag ends where the answer begins.
    const next = end < 0 && kind === 'think' ? rest.indexOf('<answer>') : -1;
    const length = end >= 0 ? end : next >= 0 ? next : rest.length;
    add(kind, rest.slice(0, length), end < 0 && next < 0);
    rest = rest.slice(end >= 0 ? end + kind.length + 3 : length);
  }
  return parts;
}

function withoutPartialTag(text) {
  const start = text.lastIndexOf('<');
  const tail = start < 0 ? '' : text.slice(start);
  return tail && TAGS.some((tag) => tag !== tail && tag.startsWith(tail)) ? text.slice(0, start) : text;
}

/** The number of words of a text, also of languages that do not put spaces between them. */
export function wordCount(text) {
  if (!Intl.Segmenter) return text.split(/\s+/).filter(Boolean).length;
  const words = new Intl.Segmenter(undefined, { granularity: 'word' }).segment(text);
  let count = 0;
  for (const word of words) if (word.isWordLike) count += 1;
  return count;
}

/** Shows the parts of an answer in an element, and updates them while the answer streams. */
export class AnswerView {
  constructor(element) {
    this.element = element;
    this.views = [];
    this.thinkBegan = null;
  }

  /** Shows `text`. `streaming`: more text may follow. `thinkSeconds`: time that the thinking took, if known. */
  update(text, streaming, thinkSeconds = null) {
    const parts = split(text, streaming);
    const kept = this.views.findIndex((view, i) => view.kind !== parts[i]?.kind);
    if (kept >= 0) this.views.splice(kept).forEach((view) => view.element.remove());
    parts.forEach((part, i) => {
      if (!this.views[i]) {
        this.views[i] = part.kind === 'think' ? new ThinkView() : new TextView(part.kind);
        this.element.append(this.views[i].element);
      }
      this.views[i].update(part, streaming, thinkSeconds, parts.length === 1);
    });
  }
}

/** Thinking: open while it streams, folded once it is complete, unless the user has opened or closed it. */
class ThinkView {
  constructor() {
    this.kind = 'think';
    this.summary = make('summary');
    this.body = make('div', { className: 'prose' });
    this.element = make('details', { className: 'think', open: true }, this.summary, this.body);
    this.touched = false;
    this.summary.addEventListener('click', () => (this.touched = true));
    this.complete = null;
  }

  update(part, streaming, thinkSeconds, isOnly) {
    if (this.body.textContent !== part.text) this.body.textContent = part.text;
    const complete = !(part.open && streaming);
    // The time changes with each token while the thinking streams; words are counted once, at the end.
    if (complete && this.complete === part.text) return;
    if (!complete) {
      this.summary.textContent = thinkSeconds === null ? 'Thinking' : `Thinking for ${seconds(thinkSeconds)}`;
      return;
    }
    this.complete = part.text;
    const words = wordCount(part.text);
    const time = thinkSeconds === null ? '' : ` for ${seconds(thinkSeconds)}`;
    const cut = part.open ? ', not finished' : '';
    this.summary.textContent = `Thought${time} · ${words} ${words === 1 ? 'word' : 'words'}${cut}`;
    // Thinking that nothing follows is all that there is to see.
    if (!this.touched) this.element.open = isOnly && part.open;
  }
}

/** Text outside of tags, or the answer. Code fences become blocks. */
class TextView {
  constructor(kind) {
    this.kind = kind;
    this.element = make('div', { className: kind === 'answer' ? 'prose final' : 'prose' });
    this.shown = null;
  }

  update({ text }) {
    if (this.shown === text) return;
    this.shown = text;
    this.element.replaceChildren(...blocks(text));
  }
}

/** Paragraphs and code blocks of a text. A fence is a line that starts with three backticks. */
export function blocks(text) {
  const made = [];
  const pieces = text.split(/^```([^\n`]*)(?:\n|$)/m);
  // The pieces are: text, language, code, language (of the end fence, empty), text, …
  for (let i = 0; i < pieces.length; i += 2) {
    const isCode = i % 4 === 2;
    const piece = pieces[i].replace(/\n$/, '');
    if (isCode) made.push(make('pre', {}, make('code', { textContent: piece, 'data-language': pieces[i - 1].trim() })));
    else if (piece.trim()) made.push(make('p', { textContent: piece.trim() }));
  }
  return made;
}
