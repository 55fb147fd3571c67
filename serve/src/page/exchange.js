// Shows one question with its media and its answer.

import { AnswerView, blocks, split } from './answer.js';
import { copyButton, grouped, make, seconds } from './dom.js';
import { mediumCard } from './media.js';

/** Shorter times are not shown, in seconds: several pieces of text arrive at once, so their times say little. */
const MEASURABLE = 0.1;

/** The answer's text without its thinking and tags. */
export function answerText(text) {
  const parts = split(text);
  const kind = parts.some((part) => part.kind === 'answer') ? 'answer' : 'text';
  return parts.filter((part) => part.kind === kind).map(({ text: piece }) => piece).join('\n\n');
}

/** Counts and times of an answer as `[label, value]`. The pieces of text are counted until the server has sent the
 * number of tokens; most pieces are one token. */
function measures({ usage, pieces, firstToken, lastToken, status, finish }) {
  const list = [];
  if (usage) list.push(['prompt', `${grouped(usage.prompt_tokens)} tokens`]);
  const tokens = usage?.completion_tokens ?? pieces;
  if (tokens) list.push(['answer', `${usage ? '' : 'about '}${grouped(tokens)} tokens`]);
  if (firstToken !== null) list.push(['first token', seconds(firstToken)]);
  if (tokens > 1 && lastToken - firstToken >= MEASURABLE) {
    const rate = (tokens - 1) / (lastToken - firstToken);
    list.push(['speed', `${rate < 100 ? rate.toFixed(1) : grouped(Math.round(rate))} tokens/s`]);
  }
  if (status === 'stopped') list.push(['end', 'stopped']);
  if (finish && finish !== 'stop') list.push(['end', finish === 'length' ? 'cut at max tokens' : finish]);
  return list;
}

/** The view of an exchange. `actions`: `{curl, retry, edit}`, functions. */
export class ExchangeView {
  constructor(exchange, media, actions) {
    this.exchange = exchange;
    this.showsRaw = false;
    this.parts = make('div', { className: 'parts' });
    this.raw = make('pre', { className: 'raw', hidden: true });
    this.view = new AnswerView(this.parts);
    this.error = make('div', { className: 'error', role: 'alert', hidden: true });
    this.measures = make('dl', { className: 'measures', 'aria-label': 'Counts and times' });
    this.actions = make('div', { className: 'actions' }, ...this.#buttons(actions));
    const question = make('div', { className: 'question' }, blocks(exchange.question));
    const foot = make('div', { className: 'foot' }, this.measures, this.actions);
    const shown = [this.parts, this.raw, this.error, foot];
    this.answer = make('section', { className: 'answer', 'aria-label': 'Answer' }, shown);
    const cards = media.map((medium) => mediumCard(medium));
    const asked = make('section', { className: 'asked', 'aria-label': 'Question' }, cards, question);
    this.element = make('article', { className: 'exchange' }, asked, this.answer);
    this.update();
  }

  #buttons({ curl, retry, edit }) {
    const action = (textContent, click) => {
      const button = make('button', { type: 'button', className: 'quiet', textContent });
      button.addEventListener('click', click);
      return button;
    };
    this.rawButton = action('Raw', () => {
      this.showsRaw = !this.showsRaw;
      this.update();
    });
    this.rawButton.title = 'The text with its tags';
    this.last = [action('Retry', retry), action('Edit', edit)];
    const copyAnswer = copyButton('Copy', () => answerText(this.exchange.answer.text));
    return [copyAnswer, copyButton('Copy as curl', curl), this.rawButton, ...this.last];
  }

  /** Shows the answer as it is now. `isLast`: it is the newest of its conversation, and can be asked again. */
  update(isLast = this.isLast) {
    this.isLast = isLast;
    const { answer } = this.exchange;
    const streaming = answer.status === 'streaming';
    this.answer.setAttribute('aria-busy', streaming);
    this.view.update(answer.text, streaming, answer.thinkSeconds >= MEASURABLE ? answer.thinkSeconds : null);
    this.raw.textContent = this.showsRaw ? answer.text : '';
    this.raw.hidden = !this.showsRaw;
    this.parts.hidden = this.showsRaw;
    this.rawButton.setAttribute('aria-pressed', this.showsRaw);
    this.answer.classList.toggle('waits', streaming && !answer.text);
    this.answer.classList.toggle('streams', streaming);
    this.element.classList.toggle('left-out', answer.status === 'failed' && !answer.text);
    this.#showError(answer.error);
    this.measures.replaceChildren(
      ...measures(answer).map(([label, value]) => make('div', {}, make('dt', {}, label), make('dd', {}, value))),
    );
    this.actions.hidden = streaming;
    for (const button of this.last) button.hidden = !isLast;
  }

  #showError(error) {
    this.error.hidden = !error;
    if (!error) return;
    const where = [error.status && `status ${error.status}`, error.code, error.param].filter(Boolean).join(' · ');
    this.error.replaceChildren(make('p', { textContent: error.message }), make('small', { textContent: where }));
  }
}
