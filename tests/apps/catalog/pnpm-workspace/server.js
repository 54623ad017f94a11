const { hello } = require("greeting");
const http = require("http");

http
  .createServer((request, response) => response.end(hello()))
  .listen(process.env.PORT, "0.0.0.0");
