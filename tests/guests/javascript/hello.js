// An HTTP handler as a browser's service worker has it, for componentize-js: it says which method, path and body came.

addEventListener("fetch", (event) => event.respondWith(answer(event.request)));

async function answer(request) {
  const url = new URL(request.url);
  const body = request.method === "POST" ? await request.text() : "";
  return new Response(`JavaScript: ${request.method} ${url.pathname} ${body}\n`, {
    status: 200,
    headers: { "x-language": "javascript" },
  });
}
