//! Manifests: those of the examples, and variations of them written into a lattice's folder.

use super::{Lattice, file};
use std::path::{Path, PathBuf};

pub(crate) fn hello() -> PathBuf {
    file("manifests/hello/app.yaml")
}
pub(crate) fn counter() -> PathBuf {
    file("manifests/counter/app.yaml")
}
pub(crate) fn counter_apart() -> PathBuf {
    file("manifests/counter/apart.yaml")
}
pub(crate) fn keystore_builtin() -> PathBuf {
    file("manifests/keystore/builtin.yaml")
}
pub(crate) fn keystore_actor() -> PathBuf {
    file("manifests/keystore/actor.yaml")
}
/// The client and the data where `tier` is `cloud`, the actor between them where it is `edge`.
pub(crate) fn keystore_actor_apart(lattice: &Lattice) -> PathBuf {
    let mut text = std::fs::read_to_string(keystore_actor()).unwrap();
    for image in ["client", "vault"] {
        let path = file(&format!("manifests/keystore/{image}.wasm")).display().to_string();
        text = change(&text, &format!("./{image}.wasm"), &path);
    }
    for tier in ["cloud", "edge", "cloud"] {
        let placed = format!("instances: 01\n            spread: [{{name: there, requirements: {{tier: {tier}}}}}]");
        text = change(&text, "instances: 1\n", &(placed + "\n"));
    }
    lattice.write("apart.yaml", text.replace("instances: 01", "instances: 1"))
}
pub(crate) fn words() -> PathBuf {
    file("manifests/words/app.yaml")
}

/// One actor "a" of the app `name`, of the component or module at `image`, with these traits (YAML, one a line).
pub(crate) fn actor(lattice: &Lattice, name: &str, image: &Path, traits: &[&str]) -> PathBuf {
    let traits: String = traits.iter().map(|t| format!("        - {t}\n")).collect();
    let traits = if traits.is_empty() { traits } else { format!("      traits:\n{traits}") };
    let text = format!(
        "apiVersion: core.oam.dev/v1beta1\nkind: Application\nmetadata: {{name: {name}}}\nspec:\n  components:\n    \
         - name: a\n      type: component\n      properties: {{image: {}}}\n{traits}",
        image.display()
    );
    lattice.write(&format!("{name}.yaml"), text)
}

/// One actor of the hello component, as it can be varied.
#[derive(Debug, Clone)]
pub(crate) struct Hello {
    pub(crate) name: &'static str,
    pub(crate) replicas: u32,
    /// Path of its route.
    pub(crate) path: &'static str,
    /// Host name of its route; "" is any.
    pub(crate) host: String,
    /// `key: value` that the host must have; "" is any host.
    pub(crate) on: &'static str,
    pub(crate) memory: &'static str,
    pub(crate) strict: bool,
    /// Where the component is.
    pub(crate) image: String,
}

impl Default for Hello {
    fn default() -> Self {
        let image = file("manifests/hello/hello.wasm").display().to_string();
        Self {
            name: "hello",
            replicas: 1,
            path: "/",
            host: String::new(),
            on: "",
            memory: "64MiB",
            strict: false,
            image,
        }
    }
}

impl Hello {
    /// The manifest as a file of this lattice.
    pub(crate) fn write(&self, lattice: &Lattice) -> PathBuf {
        lattice.write(&format!("{}.yaml", self.name), self.text())
    }

    pub(crate) fn text(&self) -> String {
        let Self { name, replicas, path, host, on, memory, strict, image } = self;
        let host = if host.is_empty() { String::new() } else { format!("\n            host: {host}") };
        let spread = match *on {
            "" if *strict => "\n            strict: true".to_owned(),
            "" => String::new(),
            on => format!("\n            spread: [{{name: there, requirements: {{{on}}}}}]"),
        };
        format!(
            "apiVersion: core.oam.dev/v1beta1
kind: Application
metadata: {{name: {name}}}
spec:
  components:
    - name: hello
      type: component
      properties:
        image: \"{image}\"
      traits:
        - type: spreadscaler
          properties:
            instances: {replicas}{spread}
        - type: ingress
          properties:
            path: {path}{host}
        - type: limits
          properties:
            memory: {memory}
"
        )
    }
}

/// The guest that tries everything, reached by the host name `hostile.localhost`; `on` as in `Hello`.
pub(crate) fn hostile(lattice: &Lattice, on: &str) -> PathBuf {
    let text = std::fs::read_to_string(file("tests/guests/hostile/app.yaml")).unwrap();
    let image = file("tests/guests/hostile/hostile.wasm").display().to_string();
    let mut text = change(&text, "./hostile.wasm", &image);
    text = change(&text, "            path: /\n", "            path: /\n            host: hostile.localhost\n");
    if !on.is_empty() {
        let spread = format!("instances: 4\n            spread: [{{name: there, requirements: {{{on}}}}}]");
        text = change(&text, "instances: 4", &spread);
    }
    lattice.write("hostile.yaml", text)
}

/// `text` with one thing changed, which must be there.
pub(crate) fn change(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from:?} is not in\n{text}");
    text.replacen(from, to, 1)
}
