// Sends one request per image, a few at a time, and retries when the service says so.

const CONCURRENT = 3;
const MAX_RETRIES = 30; // of one image, in a row
const MAX_WAIT_S = 60; // a longer wait is left to the user

/** An image and the state of its request. */
export class Item {
  constructor(image, name) {
    Object.assign(this, { image, name });
    this.reset();
  }

  /** Makes the item wait for a request. */
  reset() {
    Object.assign(this, { result: null, error: null, retries: 0 });
    this.detected = new Promise((resolve, reject) => Object.assign(this, { resolve, reject }));
    this.detected.catch(() => {}); // an error is shown when the item is opened
  }
}

export class Requests {
  /**
   * @param {(item: Item, signal: AbortSignal) => Promise<object>} send
   * @param {(item: Item) => void} onDone called with an item that has its result or error
   * @param {(item: Item, error: object) => void} onWait called before an item is sent again
   */
  constructor(send, onDone, onWait) {
    Object.assign(this, { send, onDone, onWait, pending: [], workers: 0, notBefore: 0 });
    this.run = new AbortController();
  }

  /** Cancels all requests and forgets what waits. */
  cancel() {
    this.run.abort();
    Object.assign(this, { run: new AbortController(), pending: [], workers: 0, notBefore: 0 });
  }

  add(items) {
    this.pending.push(...items);
    for (; this.workers < Math.min(CONCURRENT, this.pending.length); this.workers += 1) {
      this.work(this.run.signal);
    }
  }

  /** Sends this item next. */
  prefer(item) {
    if (!this.pending.includes(item)) return;
    this.pending = [item, ...this.pending.filter((other) => other !== item)];
  }

  async work(signal) {
    while (this.pending.length > 0) {
      await this.pause(signal);
      if (signal.aborted) return; // `cancel` has counted this worker out
      const item = this.pending.shift();
      if (item) await this.process(item, signal);
      if (signal.aborted) return;
    }
    this.workers -= 1;
  }

  async pause(signal) {
    while (!signal.aborted && Date.now() < this.notBefore) {
      const wait = Math.min(this.notBefore - Date.now(), 500);
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  }

  async process(item, signal) {
    try {
      const result = await this.send(item, signal);
      if (signal.aborted) return; // the item may wait for another result
      item.result = result;
      item.resolve(item.result);
    } catch (error) {
      if (signal.aborted) return;
      if (error.automatic && item.retries < MAX_RETRIES && error.retryAfter <= MAX_WAIT_S) {
        item.retries += 1;
        // The service asks all requests of this page to wait.
        this.notBefore = Math.max(this.notBefore, Date.now() + 1000 * error.retryAfter);
        this.pending.unshift(item);
        this.onWait(item, error);
        return;
      }
      item.error = error;
      item.reject(error);
    }
    this.onDone(item);
  }
}
