const http = require("http");

http
  .createServer((request, response) => response.end("never"))
  .listen(process.env.PORT, "0.0.0.0");
