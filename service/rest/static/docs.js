// Shows openapi.json with Swagger UI, from this server alone.

window.ui = window.SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  displayRequestDuration: true,
  validatorUrl: null, // never ask another host
});
