const { readFileSync } = require("fs");

require("http")
  .createServer((_request, response) => response.end(readFileSync("generated.txt")))
  .listen(process.env.PORT);
