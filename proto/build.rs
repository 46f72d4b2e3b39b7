//! Generates the wire types from lattice/v1/*.proto with protox, a compiler in Rust: no protoc on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["lattice/v1/bus.proto", "lattice/v1/log.proto", "lattice/v1/control.proto", "lattice/v1/raft.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    // For server reflection, so that any gRPC client can find its way.
    std::fs::write(out.join("lattice.bin"), prost::Message::encode_to_vec(&descriptors))?;
    let mut config = tonic_prost_build::Config::new();
    // Ordered maps keep encodings and snapshots byte-stable.
    config.btree_map(["."]);
    tonic_prost_build::configure().compile_fds_with_config(descriptors, config)?;
    Ok(())
}
