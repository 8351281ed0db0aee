// Browsers refuse workers of pages that are opened from disk. There, run the worker of the search in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      this.ready = new Promise((resolve) => {
        frame.onload = () => {
          const scope = frame.contentWindow;
          const load = (source) =>
            new Promise((done, failed) => {
              const script = scope.document.createElement("script");
              script.src = source;
              script.onload = done;
              script.onerror = failed;
              scope.document.head.append(script);
            });
          scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
          scope.importScripts = (...sources) =>
            sources.reduce((before, source) => before.then(() => load(source)), Promise.resolve());
          load(new URL(address, document.baseURI).href).then(() => resolve(scope));
        };
      });
      const append = () => document.body.append(frame);
      if (document.body) append();
      else document.addEventListener("DOMContentLoaded", append);
    }

    postMessage(data) {
      this.ready.then((scope) => scope.dispatchEvent(new scope.MessageEvent("message", { data })));
    }
  };
}
