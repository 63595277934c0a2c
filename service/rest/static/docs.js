// Shows openapi.json with Swagger UI; loads nothing from other hosts.

window.ui = window.SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  displayRequestDuration: true,
  validatorUrl: null, // no request to another host
});
