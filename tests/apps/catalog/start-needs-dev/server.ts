import http from "node:http";

const text: string = "hello from typescript";
http.createServer((_request, response) => response.end(text)).listen(Number(process.env.PORT), "0.0.0.0");
