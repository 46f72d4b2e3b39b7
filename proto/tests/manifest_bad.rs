//! Bad manifests: what is said of each, word for word.
#![allow(clippy::unwrap_used, reason = "tests")]

use proto::manifest;

/// The head and the one component that most of these share; lines of `body` count from 7.
fn with_component(body: &str) -> String {
    format!(
        "apiVersion: core.oam.dev/v1beta1\nkind: Application\nmetadata:\n  name: shop\nspec:\n  components:\n{body}"
    )
}

/// A good component named `name`, four lines.
fn actor(name: &str) -> String {
    format!("    - name: {name}\n      type: component\n      properties:\n        image: ./{name}.wasm\n")
}

fn said(text: &str) -> Vec<String> {
    match manifest::parse(text, "app.yaml") {
        Ok(parsed) => panic!("accepted as {parsed:?}"),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

#[track_caller]
fn check(text: &str, expect: &[&str]) {
    assert_eq!(said(text), expect, "\n{text}");
}

/// Traits of an actor "a", from line 11 on.
#[track_caller]
fn check_traits(traits: &str, expect: &[&str]) {
    check(&with_component(&format!("{}      traits:\n{traits}", actor("a"))), expect);
}

#[test]
fn text_that_is_no_manifest() {
    let start = "start it with `apiVersion: core.oam.dev/v1beta1` and `kind: Application`";
    let empty = format!("app.yaml: declares no app: it is empty, or all of it is comments; {start}");
    check("", &[&empty]);
    check("# only\n# comments\n", &[&empty]);
    check("---\n---\n", &[&empty]);
    check("   \n\n", &[&empty]);
    check(
        "hello there\n",
        &[&format!("app.yaml:1:1: not a manifest: it has none of apiVersion, kind, metadata and spec; {start}")],
    );
    check(
        "services:\n  web: {}\n",
        &[&format!("app.yaml:1:1: not a manifest: it has none of apiVersion, kind, metadata and spec; {start}")],
    );
    check(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n",
        &["app.yaml:2:7: kind: kind \"Deployment\" is not an app; \
           expected `kind: Application` of `apiVersion: core.oam.dev/v1beta1`"],
    );
}

#[test]
fn bytes_that_are_no_text() {
    let said = |bytes: &[u8]| manifest::parse_bytes(bytes, "app.yaml").unwrap_err()[0].to_string();
    assert_eq!(
        said(b"\x7fELF\x02\x01\x01\xff\xfe"),
        "app.yaml: not UTF-8 text (byte 7); it looks like a native program (ELF); \
         give a manifest in YAML, saved as UTF-8"
    );
    assert_eq!(
        said(b"\0asm\x0d\0\x01\0\xff"),
        "app.yaml: not UTF-8 text (byte 8); it looks like Wasm; \
         give the manifest here and name the component in it, as `image: ./hello.wasm`"
    );
    assert_eq!(
        said(b"\xff\xfea\0p\0i\0"),
        "app.yaml: not UTF-8 text (byte 0); it looks like text in UTF-16; give a manifest in YAML, saved as UTF-8"
    );
    assert_eq!(
        said(b"\0asm\x0d\0\x01\0"),
        "app.yaml:1:1: the text has a NUL character (U+0000); remove it: it can not be seen"
    );
}

#[test]
fn broken_yaml() {
    check(
        "apiVersion: core.oam.dev/v1beta1\nkind: [Application\n",
        &["app.yaml:2:7: not valid YAML: unclosed bracket '['; \
           check the indentation and the quotes here"],
    );
    check(
        "kind: Application\n  metadata: {name: a}\n",
        &["app.yaml:2:11: not valid YAML: mapping values are not allowed in this context; \
           check the indentation and the quotes here"],
    );
    // A broken document does not hide what is wrong with the next.
    check(
        "kind: 'Application\n---\nkind: Application\n",
        &[
            "app.yaml:1:7: not valid YAML: while scanning a quoted scalar, found unexpected document indicator; \
           check the indentation and the quotes here",
            "app.yaml:3:1: missing field \"apiVersion\"; write `apiVersion: core.oam.dev/v1beta1`",
            "app.yaml:3:1: missing field \"metadata\"; write `metadata: {name: hello}`",
            "app.yaml:3:1: missing field \"spec\"; write `spec: {components: […]}`",
        ],
    );
}

#[test]
fn cut_in_the_middle() {
    check(
        "apiVersion: core.oam.dev/v1beta1\nkind: Application\nmetadata:\n  name: shop\nspec:\n  comp",
        &["app.yaml:6:3: spec: expected a map with components, policies, found `comp`"],
    );
    check(
        "apiVersion: core.oam.dev/v1beta1\nkind: Application\nmetadata:\n  name: shop\nspec:\n",
        &["app.yaml:5:5: spec: has no value; write `spec: {components: […]}`"],
    );
}

#[test]
fn too_large() {
    let text = "#".repeat(1024 * 1024 + 1);
    check(
        &text,
        &["app.yaml: is 1048577 bytes; a manifest has at most 1048576; split it into several files, one app each"],
    );
    let long = with_component(&format!("{}        id: {}\n", actor("a"), "x".repeat(70_000)));
    check(
        &long,
        &["app.yaml:11:13: spec.components[0].properties.id: a string of 70000 bytes; at most 65536 are allowed; \
           keep large values in files or in a store"],
    );
}

#[test]
fn aliases_and_nesting() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for n in 1..12 {
        let before = n - 1;
        let refs = vec![format!("*a{before}"); 10].join(", ");
        bomb.push_str(&format!("a{n}: &a{n} [{refs}]\n"));
    }
    check(&bomb, &["app.yaml:7:15: a6[1]: aliases repeat too much here; write less, or several files"]);
    check("kind: &k [*k]\n", &["app.yaml:1:11: kind[0]: an alias inside of what it stands for; write it out"]);
    check(
        "kind: *k\n",
        &["app.yaml:1:7: not valid YAML: while parsing node, found unknown anchor; \
           check the indentation and the quotes here"],
    );
    let deep = format!("kind: {}{}\n", "[".repeat(200), "]".repeat(200));
    assert!(said(&deep)[0].starts_with("app.yaml:1:7"), "{:?}", said(&deep));
    let mut steps = String::from("a0: &a0 [[[[[[[[[[[[[[[[[[[[x]]]]]]]]]]]]]]]]]]]]\n");
    for n in 1..4 {
        steps.push_str(&format!("a{n}: &a{n} [[[[[[[[[[[[[[[[[[[[*a{}]]]]]]]]]]]]]]]]]]]]\n", n - 1));
    }
    check(
        &steps,
        &["app.yaml:4:29: a3[0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0]: \
                     nested deeper than 64 levels; write it flatter"],
    );
}

#[test]
fn keys_tags_and_hidden_characters() {
    check(
        "apiVersion: core.oam.dev/v1beta1\nkind: Application\nkind: Application\nmetadata: {name: a, name: b}\nspec: {components: []}\n",
        &[
            "app.yaml:3:1: kind: duplicate key \"kind\"; the first is at line 2; put a line `---` between two apps",
            "app.yaml:4:21: metadata.name: duplicate key \"name\"; the first is at line 4; remove one of them",
            "app.yaml:5:20: spec.components: an app without components; add one",
        ],
    );
    check(
        &with_component(&format!("{}        <<: {{id: a}}\n        id: !secret x\n", actor("a"))),
        &[
            "app.yaml:11:9: spec.components[0].properties[\"<<\"]: unknown field \"<<\"; \
             YAML merge keys are not supported: write the fields out",
            "app.yaml:12:21: spec.components[0].properties.id: unknown tag \"!secret\"; \
             remove it: a manifest uses no tags",
        ],
    );
    check(
        "kind: Application\n# shop\u{202e} reversed\nmetadata:\n  name: a\u{0}b\n",
        &[
            "app.yaml:2:7: the text has a character that changes the direction of text (U+202E); \
             remove it: it can not be seen",
            "app.yaml:4:10: the text has a NUL character (U+0000); remove it: it can not be seen",
        ],
    );
    check(
        &with_component(&format!("{}        id: \"a\\u2066b\\0\"\n", actor("a"))),
        &["app.yaml:11:13: spec.components[0].properties.id: the string has a character that changes the direction \
           of text (U+2066); remove it: it can not be seen"],
    );
}

#[test]
fn every_error_of_a_file_by_line() {
    check(
        "apiVersion: core.oam.dev/v1beta\n\
         kind: Aplication\n\
         metadata:\n\
         \x20 nmae: shop\n\
         spec:\n\
         \x20 components:\n\
         \x20   - name: Cart_1\n\
         \x20     type: compnent\n\
         \x20     propertes:\n\
         \x20       image: ./cart.wasm\n\
         \x20   - name: kv\n\
         \x20     type: capability\n\
         \x20     properties:\n\
         \x20       image: builtin:keyvlue\n\
         \x20     traits:\n\
         \x20       - type: spredscaler\n\
         \x20         properties: {instances: 2}\n\
         \x20       - type: rollout\n\
         \x20         properties: {}\n",
        &[
            "app.yaml:1:13: apiVersion: unknown apiVersion \"core.oam.dev/v1beta\"; expected \"core.oam.dev/v1beta1\"",
            "app.yaml:2:7: kind: unknown kind \"Aplication\"; expected \"Application\"",
            "app.yaml:4:3: metadata.nmae: unknown field \"nmae\"; did you mean \"name\"?",
            "app.yaml:4:3: metadata: missing field \"name\"; write `name: hello`",
            "app.yaml:7:7: spec.components[0]: missing field \"properties\"; write `properties: {image: ./hello.wasm}`",
            "app.yaml:7:13: spec.components[0].name: \"Cart_1\" is not a name: use lower-case letters, digits and inner \
             hyphens, at most 63; \"cart-1\" would do",
            "app.yaml:8:13: spec.components[0].type: unknown type \"compnent\"; did you mean \"component\"?",
            "app.yaml:9:7: spec.components[0].propertes: unknown field \"propertes\"; did you mean \"properties\"?",
            "app.yaml:14:16: spec.components[1].properties.image: no host has the provider \"builtin:keyvlue\"; there is \
             builtin:keyvalue, also under wasmCloud's names keyvalue-redis and keyvalue-nats, http-server and http-client",
            "app.yaml:16:17: spec.components[1].traits[0].type: unknown trait \"spredscaler\"; did you mean \"spreadscaler\"?",
            "app.yaml:18:17: spec.components[1].traits[1].type: trait \"rollout\" is not supported yet; remove it",
        ],
    );
}

#[test]
fn numbers_of_replicas() {
    let of = |count: &str| {
        said(&with_component(&format!(
            "{}      traits:\n        - type: spreadscaler\n          properties:\n            instances: {count}\n",
            actor("a")
        )))
    };
    let at = "app.yaml:14:24: spec.components[0].traits[0].properties.instances: expected a whole number from 0 to 1000000, found";
    let give = "give a whole number from 0 to 1000000";
    assert_eq!(of("-1"), [format!("{at} -1; {give}")]);
    assert_eq!(of("1.5"), [format!("{at} 1.5; {give}")]);
    assert_eq!(of("1e3"), [format!("{at} 1e3; {give}")]);
    assert_eq!(of("many"), [format!("{at} many; {give}")]);
    assert_eq!(of("\"3\""), [format!("{at} \"3\"; write it without quotes")]);
    assert_eq!(of("1000001"), [format!("{at} 1000001; at most 1000000 is allowed")]);
    assert_eq!(
        of("99999999999999999999999999"),
        [format!("{at} 99999999999999999999999999; at most 1000000 is allowed")]
    );
    assert_eq!(of("[1]"), [format!("{at} a list")]);
    assert_eq!(
        of(""),
        ["app.yaml:14:13: spec.components[0].traits[0].properties: missing field \"instances\"; write `instances: 1`"]
    );
}

#[test]
fn strict() {
    check_traits(
        "        - type: spreadscaler\n\
         \x20         properties: {instances: 2, strict: true}\n",
        &[
            "app.yaml:13:46: spec.components[0].traits[0].properties.strict: strict says that at most one replica runs at \
           any time, and more are asked for; write `instances: 1` in a spreadscaler, or leave strict out",
        ],
    );
    check_traits(
        "        - type: daemonscaler\n\
         \x20         properties: {instances: 1, strict: true}\n",
        &[
            "app.yaml:13:46: spec.components[0].traits[0].properties.strict: strict says that at most one replica runs at \
           any time, and more are asked for; write `instances: 1` in a spreadscaler, or leave strict out",
        ],
    );
    check_traits(
        "        - type: spreadscaler\n\
         \x20         properties: {instances: 1, strict: maybe}\n",
        &["app.yaml:13:46: spec.components[0].traits[0].properties.strict: expected true or false, found `maybe`"],
    );
}

#[test]
fn scalers() {
    check_traits(
        "        - type: spreadscaler\n\
         \x20         properties: {instances: 1, replicas: 2}\n\
         \x20       - type: daemonscaler\n\
         \x20         properties: {instances: 1, spread: [{name: a, weight: -1}, {nam: b, requirements: [x]}]}\n\
         \x20       - type: spreadscaler\n",
        &[
            "app.yaml:13:48: spec.components[0].traits[0].properties.replicas: \
             instances and replicas say the same thing; keep one of them",
            "app.yaml:14:17: spec.components[0].traits[1].type: a second scaler; the first is at line 12; keep one of them",
            "app.yaml:15:65: spec.components[0].traits[1].properties.spread[0].weight: \
             expected a whole number from 0 to 4294967295, found -1; give a whole number from 0 to 4294967295",
            "app.yaml:15:71: spec.components[0].traits[1].properties.spread[1].nam: unknown field \"nam\"; did you mean \"name\"?",
            "app.yaml:15:93: spec.components[0].traits[1].properties.spread[1].requirements: \
             expected a map of text to text, found a list",
            "app.yaml:16:11: spec.components[0].traits[2]: missing field \"properties\"; write `properties: {…}`",
            "app.yaml:16:17: spec.components[0].traits[2].type: a second scaler; the first is at line 12; keep one of them",
        ],
    );
    check_traits(
        "        - type: spreadscaler\n\
         \x20         properties: {instances: 3, spread: [{name: a, weight: 0}]}\n",
        &["app.yaml:13:46: spec.components[0].traits[0].properties.spread: every weight is 0, \
           so no replica could be placed; give one a weight above 0"],
    );
}

#[test]
fn every_grant_and_every_limit_is_checked() {
    check_traits(
        "        - type: grants\n\
         \x20         properties:\n\
         \x20           sockets: {tcp: [db.example:5432], udp: [\"*:53\"], lookups: sure}\n\
         \x20           clocks: {wall: 1, monotonic: exact}\n\
         \x20           random: {sed: 1}\n\
         \x20           args: {a: b}\n\
         \x20           exit: 1\n\
         \x20       - type: limits\n\
         \x20         properties: {table: 0, instances: 65, cpu: 0s, request: much, response: 2TB, log: 1GiB, outgoing: -1}\n\
         \x20       - type: limits\n\
         \x20         properties: {reuse: 0, concurrency: many, stack: 9MiB}\n",
        &[
            "app.yaml:14:29: spec.components[0].traits[0].properties.sockets.tcp[0]: \"db.example:5432\" is not an address; \
             write an address, not a name: 10.0.0.5:5432, 10.0.0.0/8, [fd00::/8]:53, *:443 or *",
            "app.yaml:14:71: spec.components[0].traits[0].properties.sockets.lookups: expected true or false, found `sure`",
            "app.yaml:15:28: spec.components[0].traits[0].properties.clocks.wall: expected true or false, found `1`",
            "app.yaml:15:42: spec.components[0].traits[0].properties.clocks.monotonic: \"exact\" is no monotonic clock; \
             write coarse (whole milliseconds) or fine",
            "app.yaml:16:21: spec.components[0].traits[0].properties.random: missing field \"seed\"; write `seed: 42`",
            "app.yaml:16:22: spec.components[0].traits[0].properties.random.sed: unknown field \"sed\"; did you mean \"seed\"?",
            "app.yaml:17:19: spec.components[0].traits[0].properties.args: expected a list of arguments, found a map",
            "app.yaml:18:19: spec.components[0].traits[0].properties.exit: expected true or false, found `1`",
            "app.yaml:20:31: spec.components[0].traits[1].properties.table: table of 0 is out of range; give 1 to 1000000",
            "app.yaml:20:45: spec.components[0].traits[1].properties.instances: expected a whole number from 0 to 64, \
             found 65; at most 64 is allowed",
            "app.yaml:20:54: spec.components[0].traits[1].properties.cpu: processor time of \"0s\" is out of range; \
             give 1ms to 24h",
            "app.yaml:20:67: spec.components[0].traits[1].properties.request: \"much\" is not a size of a body; \
             write it as 64MiB",
            "app.yaml:20:83: spec.components[0].traits[1].properties.response: \"2TB\" is not a size of a body; \
             write it as 64MiB",
            "app.yaml:20:93: spec.components[0].traits[1].properties.log: \"1GiB\" of log a second is out of range; \
             give 0 to 64MiB",
            "app.yaml:20:109: spec.components[0].traits[1].properties.outgoing: expected a whole number from 0 to 10000, \
             found -1; give a whole number from 0 to 10000",
            "app.yaml:21:17: spec.components[0].traits[2].type: a second limits; the first is at line 19; keep one of them",
            "app.yaml:22:31: spec.components[0].traits[2].properties.reuse: reuse of 0 is out of range; give 1 to 1000000",
            "app.yaml:22:47: spec.components[0].traits[2].properties.concurrency: expected a whole number from 0 to 10000, \
             found many; give a whole number from 0 to 10000",
            "app.yaml:22:60: spec.components[0].traits[2].properties.stack: a call stack of \"9MiB\" is out of range; \
             give 512KiB to 8MiB",
        ],
    );
}

#[test]
fn ingress_grants_and_limits() {
    check_traits(
        "        - type: ingress\n\
         \x20         properties: {routes: [{path: api}, {host: \"http://a\"}, {path: /a/../b}, {path: /x, hots: a}]}\n\
         \x20       - type: grants\n\
         \x20         properties:\n\
         \x20           env: [A=1]\n\
         \x20           http: [https://api.example.org/v1, api.example.org:99999]\n\
         \x20           folders: [{host: data, guest: /d}, {guest: /d}]\n\
         \x20           sockets: yes\n\
         \x20       - type: limits\n\
         \x20         properties: {memory: 64 megs, deadline: 30, queue: -1}\n\
         \x20       - type: limits\n\
         \x20         properties: {memory: 1TiB, deadline: 48h, queu: 1}\n",
        &[
            "app.yaml:13:40: spec.components[0].traits[0].properties.routes[0].path: \"api\" is not a path; start it with /",
            "app.yaml:13:53: spec.components[0].traits[0].properties.routes[1].host: \"http://a\" is not a host name; \
             write it without scheme and port",
            "app.yaml:13:73: spec.components[0].traits[0].properties.routes[2].path: \"/a/../b\" is not a path; \
             write it without empty segments, . and ..",
            "app.yaml:13:94: spec.components[0].traits[0].properties.routes[3].hots: unknown field \"hots\"; \
             did you mean \"host\"?",
            "app.yaml:16:18: spec.components[0].traits[1].properties.env: expected a map of text to text, found a list",
            "app.yaml:17:20: spec.components[0].traits[1].properties.http[0]: \"https://api.example.org/v1\" is not an \
             address; write https://api.example.org, *.example.org, 127.0.0.1:8080, 10.0.0.0/8 or *, without a path",
            "app.yaml:17:48: spec.components[0].traits[1].properties.http[1]: \"api.example.org:99999\" is not an address; \
             write https://api.example.org, *.example.org, 127.0.0.1:8080, 10.0.0.0/8 or *, without a path",
            "app.yaml:18:30: spec.components[0].traits[1].properties.folders[0].host: \"data\" is not a full path; \
             start it with / and use no ..",
            "app.yaml:18:48: spec.components[0].traits[1].properties.folders[1]: missing field \"host\"; \
             write `host: /srv/data`",
            "app.yaml:19:22: spec.components[0].traits[1].properties.sockets: expected true or false, found `yes`",
            "app.yaml:21:32: spec.components[0].traits[2].properties.memory: \"64 megs\" is not an amount of memory; \
             write it as 64MiB",
            "app.yaml:21:51: spec.components[0].traits[2].properties.deadline: \"30\" is not a time; \
             write it with its unit, as 30s or 500ms",
            "app.yaml:21:62: spec.components[0].traits[2].properties.queue: expected a whole number from 0 to 1000000, \
             found -1; give a whole number from 0 to 1000000",
            "app.yaml:22:17: spec.components[0].traits[3].type: a second limits; the first is at line 20; keep one of them",
            "app.yaml:23:32: spec.components[0].traits[3].properties.memory: \"1TiB\" is not an amount of memory; \
             write it as 64MiB",
            "app.yaml:23:48: spec.components[0].traits[3].properties.deadline: a deadline of \"48h\" is out of range; \
             give 1ms to 24h",
            "app.yaml:23:53: spec.components[0].traits[3].properties.queu: unknown field \"queu\"; did you mean \"queue\"?",
        ],
    );
    check(
        &with_component(&format!(
            "{}      traits:\n        - type: ingress\n          properties: {{path: /api/}}\n{}      traits:\n        - type: ingress\n          properties: {{host: '*', path: /api}}\n",
            actor("a"),
            actor("b")
        )),
        &[
            "app.yaml:20:23: spec.components[1].traits[0].properties: a second ingress route for every host at \"/api\"; \
           the first, of \"a\", is at line 13; give one of them another `path` or `host`: \
           the ingress does not tell them apart by address",
        ],
    );
}

/// A link trait in one line.
fn link(target: &str, package: &str, interface: &str) -> String {
    format!(
        "        - {{type: link, properties: {{target: {target}, namespace: wasi, package: {package}, interfaces: [{interface}]}}}}\n"
    )
}

#[test]
fn links() {
    let kv = "    - name: kv\n      type: capability\n      properties: {image: builtin:keyvalue}\n";
    let traits = [
        link("kvv", "keyvalue", "store"),
        link("a", "keyvalue", "store"),
        link("kv", "keyvalue", "stores"),
        link("kv", "blobstore", "blobstore"),
        link("kv", "keyvalue", ""),
        link("kv", "keyvalue", "store"),
        link("kv", "keyvalue", "store"),
        link("kv", "keyvalue", "\"wasi:keyvalue/store\""),
        "        - {type: link, properties: {target: {nam: kv}, package: keyvalue, interfaces: store}}\n".to_owned(),
    ]
    .concat();
    check(
        &with_component(&format!("{}      traits:\n{traits}{kv}", actor("a"))),
        &[
            "app.yaml:12:45: spec.components[0].traits[0].properties.target: there is no component \"kvv\"; did you mean \"kv\"?",
            "app.yaml:13:45: spec.components[0].traits[1].properties.target: \"a\" links to itself; \
             link to the component that serves the interface",
            "app.yaml:14:98: spec.components[0].traits[2].properties.interfaces[0]: \"kv\" does not serve \
             \"wasi:keyvalue/stores\"; did you mean \"wasi:keyvalue/store\"?",
            "app.yaml:15:99: spec.components[0].traits[3].properties.interfaces[0]: \"kv\" does not serve \
             \"wasi:blobstore/blobstore\"; it serves wasi:keyvalue/store, wasi:keyvalue/atomics, wasi:keyvalue/batch, \
             lattice:keystore/store",
            "app.yaml:16:97: spec.components[0].traits[4].properties.interfaces: a link without interfaces allows nothing; \
             name them: `interfaces: [store]`",
            "app.yaml:18:98: spec.components[0].traits[6].properties.interfaces[0]: a second link of \"a\" named \"default\" \
             for wasi:keyvalue/store; the first is at line 17 and goes to \"kv\"; remove one of them",
            "app.yaml:19:98: spec.components[0].traits[7].properties.interfaces[0]: \"wasi:keyvalue/store\" is no name of \
             WIT; write `namespace: wasi`, `package: keyvalue`, `interfaces: [store]`, each alone and without version",
            "app.yaml:20:36: spec.components[0].traits[8].properties: missing field \"namespace\"; write `namespace: wasi`",
            "app.yaml:20:45: spec.components[0].traits[8].properties.target: missing field \"name\"; write `name: kv`",
            "app.yaml:20:46: spec.components[0].traits[8].properties.target.nam: unknown field \"nam\"; did you mean \"name\"?",
            "app.yaml:20:87: spec.components[0].traits[8].properties.interfaces: expected a list of interfaces, found `store`",
        ],
    );
}

#[test]
fn links_in_a_circle() {
    let to = |from: &str, target: &str| format!("{}      traits:\n{}", actor(from), link(target, "x", "y"));
    check(
        &with_component(&format!("{}{}{}{}", to("start", "a"), to("a", "b"), to("b", "c"), to("c", "a"))),
        &["app.yaml:30:45: spec.components[3].traits[0].properties.target: links in a circle: a -> b -> c -> a; \
           a call could never end: remove one of these links"],
    );
}

#[test]
fn names_twice() {
    check(
        &with_component(&format!("{}{}", actor("a"), actor("a"))),
        &["app.yaml:11:13: spec.components[1].name: a second component named \"a\"; the first is at line 7; \
           give one of them another name"],
    );
    let one = with_component(&actor("a"));
    check(
        &format!("{one}---\n{one}"),
        &["app.yaml:15:9: metadata.name: the file has two apps named \"shop\"; the first is at line 4; \
           give one of them another name"],
    );
    let said = said(&"kind: Application\n---\n".repeat(101));
    assert!(
        said.contains(&"app.yaml:201:1: more than 100 apps in one file; split it into several files".to_owned()),
        "{said:?}"
    );
}

#[test]
fn what_is_understood_but_not_supported() {
    check(
        &with_component(
            "    - name: a\n\
             \x20     type: actor\n\
             \x20     properties:\n\
             \x20       image: ./a.wasm\n\
             \x20       config: [{name: elsewhere}]\n\
             \x20       secrets: [{name: key, properties: {policy: p, key: k}}]\n\
             \x20   - name: b\n\
             \x20     type: component\n\
             \x20     properties:\n\
             \x20       application: {name: shared, component: b}\n\
             \x20   - name: db\n\
             \x20     type: capability\n\
             \x20     properties: {image: \"ghcr.io/wasmcloud/sqldb-postgres:0.10.0\"}\n\
             \x20   - name: mine\n\
             \x20     type: capability\n\
             \x20     properties: {image: ./mine.wasm}\n\
             \x20   - name: kv\n\
             \x20     type: component\n\
             \x20     properties: {image: builtin:keyvalue}\n\
             \x20   - name: web\n\
             \x20     type: component\n\
             \x20     properties: {image: https://example.org/a.wasm}\n",
        ),
        &[
            "app.yaml:11:18: spec.components[0].properties.config[0]: config \"elsewhere\" has no properties, and nothing in \
             this manifest gives them; write its `properties` here: config kept elsewhere is not supported",
            "app.yaml:12:18: spec.components[0].properties.secrets: secrets are not supported yet; remove them, and give the \
             values as `config`, or as `env` of the `grants` trait",
            "app.yaml:16:22: spec.components[1].properties.application: components shared with another app are not supported \
             yet; give the `image` here, so that this app has a component of its own",
            "app.yaml:19:27: spec.components[2].properties.image: no host has the provider \
             \"ghcr.io/wasmcloud/sqldb-postgres:0.10.0\"; there is builtin:keyvalue, also under wasmCloud's names \
             keyvalue-redis and keyvalue-nats, http-server and http-client",
            "app.yaml:22:27: spec.components[3].properties.image: no host has the provider \"./mine.wasm\"; \
             a provider made of Wasm is an actor: write `type: component`, and link to it",
            "app.yaml:25:27: spec.components[4].properties.image: \"builtin:keyvalue\" is a provider; write `type: capability`",
            "app.yaml:28:27: spec.components[5].properties.image: image \"https://example.org/a.wasm\": images are not \
             fetched from https://: use a file (./hello.wasm) or a registry (ghcr.io/a/b:1)",
        ],
    );
}

#[test]
fn the_http_server_of_wasmcloud() {
    let server = |rest: &str| {
        format!(
            "    - name: web\n      type: capability\n      properties:\n        image: ghcr.io/wasmcloud/http-server:0.27.0\n{rest}"
        )
    };
    check(
        &with_component(&format!(
            "{}      traits:\n{}{}",
            actor("a"),
            link("web", "http", "incoming-handler"),
            server(
                "        config: [{name: tls, properties: {tls_cert_file: /c, tls_priv_key_file: /k}}]\n      traits:\n        - {type: link, properties: {target: a, namespace: wasi, package: http, interfaces: [types]}}\n        - {type: ingress, properties: {path: /}}\n"
            )
        )),
        &[
            "app.yaml:12:45: spec.components[0].traits[0].properties.target: the HTTP server serves nothing to actors; \
             the link goes from the HTTP server to the actor; put it there, or use the `ingress` trait",
            "app.yaml:17:17: spec.components[1].properties.config: setting \"tls_cert_file\" of the HTTP server is not \
             supported; remove it: the ingress of the hosts stands in for that server",
            "app.yaml:17:17: spec.components[1].properties.config: setting \"tls_priv_key_file\" of the HTTP server is not \
             supported; remove it: the ingress of the hosts stands in for that server",
            "app.yaml:19:36: spec.components[1].traits[0].properties: the HTTP server has no wasi:http [types]; \
             its links are for wasi:http [incoming-handler]",
            "app.yaml:20:18: spec.components[1].traits[1].type: trait \"ingress\" on a capability; \
             only a component of type `component` has it",
        ],
    );
}

#[test]
fn more_than_an_app_may_have() {
    let many: String = (0..1_001)
        .map(|n| format!("    - {{name: c{n}, type: component, properties: {{image: ./c.wasm}}}}\n"))
        .collect();
    check(
        &with_component(&many),
        &["app.yaml:7:5: spec.components: 1001 components; an app has at most 1000; split it into several apps"],
    );
    let routes: Vec<String> = (0..1_001).map(|n| format!("{{path: /{n}}}")).collect();
    check_traits(
        &format!("        - {{type: ingress, properties: {{routes: [{}]}}}}\n", routes.join(", ")),
        &["app.yaml:4:9: metadata.name: 1001 ingress routes; an app has at most 1000; split it into several apps"],
    );
    let links: String = (0..1_001).map(|n| link("b", "x", &format!("i{n}"))).collect();
    check(
        &with_component(&format!("{}      traits:\n{links}{}", actor("a"), actor("b"))),
        &["app.yaml:4:9: metadata.name: 1001 links; an app has at most 1000; split it into several apps"],
    );
    let wrong: String = (0..1_500).map(|n| format!("x{n}: 1\n")).collect();
    let said = said(&format!("kind: Application\n{wrong}"));
    assert_eq!(said.len(), 1_001);
    assert_eq!(said[1_000], "app.yaml: 503 more problems are not shown; correct these first");
}
