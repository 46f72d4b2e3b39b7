//! Generates the wire types from lattice/v1/*.proto with protox, a compiler in Rust: no protoc on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["bus", "log", "control", "raft", "peer", "backup"].map(|name| format!("lattice/v1/{name}.proto"));
    for file in &files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(&files, ["."])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    // For server reflection, so that any gRPC client can find its way; what schedulers say to each other is not offered.
    let mut offered = descriptors.clone();
    offered.file.retain(|file| !file.name().ends_with("peer.proto"));
    std::fs::write(out.join("lattice.bin"), prost::Message::encode_to_vec(&offered))?;
    let mut config = tonic_prost_build::Config::new();
    // Ordered maps keep encodings and snapshots byte-stable.
    config.btree_map(["."]);
    tonic_prost_build::configure().compile_fds_with_config(descriptors, config)?;
    Ok(())
}
