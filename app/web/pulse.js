// Ask every two seconds which parts of the page have changed, and press their hidden buttons.
(() => {
  const seen = {};
  let timer;
  async function ask() {
    clearTimeout(timer);
    if (!document.hidden) {
      try {
        const parts = await (await fetch("pulse", { cache: "no-store" })).json();
        for (const [name, digest] of Object.entries(parts)) {
          const button = document.getElementById(`pulse-${name}`);
          if (button && seen[name] !== digest) {
            seen[name] = digest;
            button.click();
          }
        }
      } catch {} // the server is being restarted
    }
    timer = setTimeout(ask, 2000);
  }
  document.addEventListener("visibilitychange", ask);
  timer = setTimeout(ask, 1000);
})();
