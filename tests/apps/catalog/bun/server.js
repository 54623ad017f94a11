const http = require("http");

http
  .createServer((request, response) => response.end(require("ms/package.json").version))
  .listen(process.env.PORT, "0.0.0.0");
