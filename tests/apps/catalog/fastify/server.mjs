import Fastify from "fastify";

const app = Fastify();
app.get("/", async () => "hello from fastify");
await app.listen({ port: Number(process.env.PORT), host: "0.0.0.0" });
