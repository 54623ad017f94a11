import "reflect-metadata";
import { Controller, Get, Module } from "@nestjs/common";
import { NestFactory } from "@nestjs/core";

@Controller()
class Root {
  @Get()
  hello(): string {
    return "hello from nest";
  }
}

@Module({ controllers: [Root] })
class App {}

NestFactory.create(App).then((app) => app.listen(process.env.PORT ?? 3000, "0.0.0.0"));
