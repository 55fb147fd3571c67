// The page: shows a conversation and asks its questions.

import * as api from './api.js';
import { attach, connectComposer, isAttached, lookAgain, restore, showRunning, take } from './composer.js';
import { announce, byId, grouped } from './dom.js';
import { ExchangeView, answerText } from './exchange.js';
import { connectHistory, keep, markCurrent, showHistory } from './history.js';
import { Medium, dataUri, mediumCard, newId } from './media.js';
import { closePanel, connectFiles, connectPanels, setOpen } from './panels.js';
import { chatBody, counts, curl } from './request.js';
import { samplingFields, showSettings, systemPrompt } from './settings.js';
import * as store from './store.js';

/** Time between two questions whether the server is ready, in milliseconds. */
const READY_INTERVAL = 15_000;
const TITLE_LENGTH = 60;

let conversation = newConversation();
/** The views of the conversation's exchanges. */
let views = [];
/** The media of the conversation, by their id. */
const media = new Map();
/** Aborts the answer that streams; null if none does. */
let running = null;
let model = null;
/** The ids of removed conversations: an answer that still streams must not store one again. */
const removed = new Set();

function newConversation() {
  return { id: newId(), title: '', updated: Date.now(), model: null, exchanges: [] };
}

// ---- Asking ----

async function send() {
  if (running) return;
  const taken = take();
  if (!taken) return;
  const exchange = { question: taken.question, media: taken.media.map(({ facts }) => facts), answer: null };
  for (const medium of taken.media) {
    media.set(medium.facts.id, medium);
    const save = () => keep(store.saveMedium({ id: medium.facts.id, blob: medium.blob, preview: medium.seen }));
    medium.onChange = () => {
      refreshCard(medium);
      save();
    };
    save();
  }
  conversation.exchanges.push(exchange);
  conversation.title ||= taken.question.slice(0, TITLE_LENGTH);
  await ask(exchange);
}

/** Asks the question of the newest exchange of the shown conversation. */
async function ask(exchange) {
  const asked = conversation;
  const answer = { text: '', status: 'streaming', finish: null, usage: null, pieces: 0, error: null };
  Object.assign(answer, { firstToken: null, lastToken: null, thinkSeconds: null });
  Object.assign(exchange, { system: systemPrompt(), fields: samplingFields(), answer });
  asked.model = model?.id;
  running = new AbortController();
  showConversation();
  showRunning(true);
  announce('Waiting for the answer');
  scrollDown();
  save(asked);
  try {
    const body = await chatBody(asked, asked.exchanges.indexOf(exchange), uriOf);
    const { finish, usage } = await api.chat(body, textReceiver(exchange), running.signal);
    Object.assign(answer, { finish, usage, status: 'complete' });
    announce(`Answer: ${answerText(answer.text).slice(0, 500)}`);
  } catch (error) {
    fail(answer, error);
  }
  running = null;
  showRunning(false);
  updateView(exchange);
  showContext();
  save(asked);
}

/** Stores a conversation; one without questions is removed from the store. */
async function save(one) {
  if (removed.has(one.id)) return;
  one.updated = Date.now();
  if (one.exchanges.length === 0) one.title = '';
  await keep(one.exchanges.length > 0 ? store.saveConversation(one) : store.removeConversation(one));
  await showHistory(conversation.id);
}

/** A function that adds pieces of text to an answer, and measures their times in seconds since now. */
function textReceiver({ answer }) {
  const began = performance.now();
  return (piece) => {
    const now = (performance.now() - began) / 1000;
    const wasThinking = !answer.text.includes('</think>');
    answer.text += piece;
    answer.pieces += 1;
    answer.firstToken ??= now;
    answer.lastToken = now;
    if (wasThinking && /<\/?think>/.test(answer.text)) answer.thinkSeconds = now - answer.firstToken;
    scheduleUpdate(answer);
  };
}

function fail(answer, error) {
  if (error.name === 'AbortError') {
    answer.status = 'stopped';
    announce('Stopped');
    return;
  }
  answer.status = 'failed';
  const { message, status = null, code = null, param = null } = error;
  answer.error = { message, status, code, param };
  if (status === 401) askForKey();
}

async function uriOf({ id, name }) {
  const blob = media.get(id)?.blob;
  if (!blob) throw new Error(`${name} is not stored any more; start a new conversation and attach it again`);
  return dataUri(blob);
}

const stop = () => running?.abort();

// ---- The conversation ----

/** Shows all exchanges of the conversation. */
function showConversation() {
  const last = conversation.exchanges.length - 1;
  views = conversation.exchanges.map((exchange, index) => {
    const view = new ExchangeView(exchange, exchange.media.map(({ id }) => media.get(id)), {
      curl: () => curl(conversation, conversation.exchanges.indexOf(exchange)),
      retry: () => running || ask(exchange),
      edit: () => running || edit(exchange),
    });
    view.update(index === last);
    return view;
  });
  byId('exchanges').replaceChildren(...views.map(({ element }) => element));
  byId('welcome').hidden = views.length > 0;
  document.title = conversation.title ? `${conversation.title} – reel` : 'reel';
  showContext();
  markCurrent(conversation.id);
}

/** Shows a medium again whose frames have come after its question was sent. */
function refreshCard(medium) {
  const isThis = ({ id }) => id === medium.facts.id;
  const index = conversation.exchanges.findIndex((exchange) => exchange.media.some(isThis));
  if (index < 0) return;
  const place = conversation.exchanges[index].media.findIndex(isThis);
  views[index]?.element.querySelectorAll('.medium')[place]?.replaceWith(mediumCard(medium));
}

let scheduled = false;

/** Shows new text of an answer before the next paint. */
function scheduleUpdate(answer) {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    const exchange = conversation.exchanges.find((one) => one.answer === answer);
    if (exchange) updateView(exchange);
  });
}

function updateView(exchange) {
  const thread = byId('thread');
  const atEnd = thread.scrollHeight - thread.scrollTop - thread.clientHeight < 48;
  views.find((view) => view.exchange === exchange)?.update();
  if (atEnd) scrollDown();
}

function scrollDown() {
  const thread = byId('thread');
  thread.scrollTop = thread.scrollHeight;
}

/** Puts the newest question and its media back into the question field. */
function edit(exchange) {
  conversation.exchanges = conversation.exchanges.filter((other) => other !== exchange);
  for (const { id } of exchange.media) keep(store.removeMedium(id));
  save(conversation);
  restore(exchange.question, exchange.media.map(({ id }) => media.get(id)).filter(({ blob }) => blob));
  showConversation();
}

function showContext() {
  const usage = conversation.exchanges.filter(counts).at(-1)?.answer.usage;
  const most = model?.max_model_len;
  byId('context').textContent = usage && most ? `${grouped(usage.total_tokens)} / ${grouped(most)} tokens` : '';
}

/** The conversation that was chosen last: another one may still be read from the store. */
let opening = null;

async function openConversation(one) {
  stop();
  opening = one;
  const kept = new Map();
  for (const { id } of one.exchanges.flatMap((exchange) => exchange.media)) kept.set(id, await store.medium(id));
  if (opening !== one) return;
  for (const medium of media.values()) if (!isAttached(medium)) medium.close();
  media.clear();
  for (const { media: list, answer } of one.exchanges) {
    // The page was closed while the answer streamed.
    if (answer.status === 'streaming') answer.status = 'stopped';
    for (const facts of list) {
      const { blob, preview } = kept.get(facts.id) ?? {};
      media.set(facts.id, new Medium(facts, blob ?? null, preview ?? null));
    }
  }
  conversation = one;
  showConversation();
  scrollDown();
  setOpen('history', false);
  byId('question').focus();
}

async function removeConversation(one) {
  removed.add(one.id);
  await keep(store.removeConversation(one));
  if (one.id === conversation.id) await openConversation(newConversation());
  await showHistory(conversation.id);
}

async function clearAll() {
  removed.add(conversation.id);
  await keep(store.clear());
  await openConversation(newConversation());
  await showHistory(conversation.id);
}

// ---- The server ----

async function loadModel() {
  try {
    model = await api.model();
    byId('model').textContent = model.id;
    byId('key-form').hidden = true;
    showServer(true);
  } catch (error) {
    if (error.status === 401) askForKey();
    else showServer(false);
  }
  showContext();
}

function showServer(isReady) {
  byId('server').textContent = isReady ? '' : 'not ready';
}

async function checkServer() {
  if (document.hidden) return;
  const ready = await api.isReady();
  if (ready && !model) await loadModel();
  else showServer(ready);
}

function askForKey() {
  byId('key-form').hidden = false;
  byId('key-now').focus();
}

function useKey() {
  api.setApiKey(byId('key-now').value.trim());
  byId('key-now').value = '';
  showSettings(onSettings);
  onSettings({ media: true, key: true });
}

function onSettings({ media: mediaChanged, key }) {
  if (mediaChanged) lookAgain(key);
  if (key) loadModel();
}

function connect() {
  connectComposer({ send, stop, needKey: askForKey });
  connectPanels();
  connectFiles(attach);
  const create = () => openConversation(newConversation());
  connectHistory({ open: openConversation, remove: removeConversation, create, clear: clearAll });
  byId('key-save').addEventListener('click', useKey);
  byId('key-now').addEventListener('keydown', (event) => {
    if (event.key !== 'Enter') return;
    event.preventDefault();
    useKey();
  });
  document.addEventListener('keydown', (event) => {
    if (event.key !== 'Escape') return;
    if (running) stop();
    else closePanel();
  });
  document.addEventListener('visibilitychange', checkServer);
  setInterval(checkServer, READY_INTERVAL);
}

async function start() {
  connect();
  showSettings(onSettings);
  const stays = await store.open();
  if (!stays) byId('store-note').textContent = 'This browser keeps conversations only until the page is closed.';
  await showHistory(conversation.id);
  await loadModel();
}

start();
