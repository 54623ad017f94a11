// A small web app: answers every path with a page, /health with "ok".
const http = require("node:http");

const app = process.env.KNARR_APP || "hello-node";
const facts = { release: process.env.KNARR_RELEASE, commit: (process.env.KNARR_COMMIT || "").slice(0, 12) };
const rows = Object.entries(facts)
  .filter(([, value]) => value)
  .map(([name, value]) => `<dt>${name}</dt><dd>${value}</dd>`)
  .join("");

const page = `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${app}</title>
<style>
  :root { color-scheme: light dark; }
  body { font: 16px/1.6 system-ui, sans-serif; display: grid; place-content: center; min-height: 100vh; margin: 0;
         background: light-dark(#f1f5ef, #141a16); color: light-dark(#1c2b22, #e3e8e4); }
  h1 { font-weight: 600; letter-spacing: -.02em; margin: 0 0 .5rem; }
  dl { display: grid; grid-template-columns: auto 1fr; gap: .1rem 1rem; margin: 0; opacity: .75; }
  dd { margin: 0; font-family: ui-monospace, monospace; }
</style>
<main>
  <h1>Hello from Node ${process.versions.node}</h1>
  <dl><dt>app</dt><dd>${app}</dd>${rows}</dl>
</main>
</html>
`;

const server = http.createServer((request, response) => {
  const [type, body] = request.url === "/health" ? ["text/plain", "ok\n"] : ["text/html", page];
  response.writeHead(200, { "Content-Type": `${type}; charset=utf-8`, "Content-Length": Buffer.byteLength(body) });
  response.end(body);
});

server.listen(Number(process.env.PORT || 8000), process.env.HOST || "127.0.0.1", () => console.log(`${app} listens on port ${server.address().port}`));
process.on("SIGTERM", () => server.close(() => process.exit(0)));
