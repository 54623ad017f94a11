const http = require("http");

http
  .createServer((request, response) => response.end("hello from server.js"))
  .listen(process.env.PORT, "0.0.0.0");
