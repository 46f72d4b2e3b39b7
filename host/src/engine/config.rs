//! How wasmtime is set up: one function, so that every engine of one build makes code that the others can load, and
//! the sizes that this machine can carry.
//!
//! Memory mappings are the scarce thing: past `vm.max_map_count` any allocation of the process can fail, so the
//! number of instances is cut well below it.

use super::cgroup;
use super::compile::Compiler;
use super::granted::BusAddresses;
use proto::app::STACK_BYTES;
use proto::policy::Policy;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use wasmtime::{Enabled, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig, Strategy};

/// What an engine is built from.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where compiled code is kept; made with mode 0700 if it is not there.
    pub cache_dir: PathBuf,
    /// Linear memory that all instances together may have; 0 is three quarters of what the machine or its cgroup has, less
    /// where that is small.
    pub memory_bytes: u64,
    /// Instances alive at once; cut to what the machine's mappings allow.
    pub instances_max: u32,
    /// What this host takes away from what manifests grant.
    pub policy: Arc<Policy>,
    pub bus: BusAddresses,
    /// Who compiles; without one this process does.
    pub compiler: Option<Compiler>,
}

/// Ticks after which one that computes for long gives way to others that do.
pub(super) const BACK_TURN_TICKS: u64 = 5;
/// What is left of a fiber's stack beneath the guest's frames, for what the host does when it is called from there.
const HOST_STACK_BYTES: usize = 1024 * 1024;
/// How often a guest is entered on one fiber: by its caller, and from there by the host that asks it for memory. wasmtime
/// gives each entry the whole of the call stack, and a guest that goes on beyond the fiber's end would end the process.
const ENTRIES: u64 = 2;
/// Larger stacks than the usual one's 1 MiB count as another instance for each of these.
const STACK_SLOT_BYTES: u64 = 1024 * 1024;
/// Of a larger stack, what is kept for the next instance and not given back.
const STACK_KEEP_BYTES: usize = 64 * 1024;
/// Fibers of a pool at least: one that waits may need another to go on.
const STACKS_MIN: u32 = 4;
/// Core instances that one component may hold: toolchains for Python and JavaScript make a dozen.
pub(super) const CORE_INSTANCES_MAX: u32 = 64;
pub(super) const TABLES_MAX: u32 = 64;
pub(super) const MEMORIES_MAX: u32 = 16;
/// Memories and tables for each instance that may be alive; one that has more counts as several.
pub(super) const MEMORIES_PER_SLOT: u32 = 2;
pub(super) const TABLES_PER_SLOT: u32 = 8;
/// Elements of one table.
pub(super) const TABLE_ELEMENTS_MAX: usize = 100_000;

/// Frames noted when a guest traps; the first names the function.
const BACKTRACE_FRAMES_MAX: usize = 8;
/// Mappings of one live instance: memory, its image, guards, tables, a stack and its guard; with room to spare.
const MAPS_PER_INSTANCE: u64 = 10;
/// Memory of one live instance, a small one's with its stack and what its host keeps for it.
const INSTANCE_BYTES: u64 = 1024 * 1024;
/// What is left to the host itself, and to whoever compiles for it, where three quarters would be too much.
const HOST_BYTES: u64 = 40 * 1024 * 1024;
/// Memory and mappings of a component's code, small and idle; the share of actors' memory that may go there.
const MAPPED_BYTES: u64 = 256 * 1024;
const MAPS_PER_MAPPED: u64 = 3;
const MAPPED_SHARE: u64 = 8;
/// Actors whose code is mapped, at least and at most.
const MAPPED: (u64, u64) = (16, 512);
/// Linux's default, taken where there is nothing to read.
const MAPS_DEFAULT: u64 = 65_530;
/// Of a live instance's memory, what stays resident for the next one in that slot.
const KEEP_RESIDENT_BYTES: usize = 256 * 1024;

/// An engine for components of WASI 0.2, or one for those of 0.3 besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    Later,
}

/// The call stack of one call in the guest, all its frames: one of a few sizes, since each has an engine of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stack {
    /// Twice the usual one so many times.
    doubled: u8,
}

impl Stack {
    pub(super) const USUAL: Self = Self { doubled: 0 };
    /// To 8 MiB.
    const DOUBLED_MAX: u8 = 4;
    /// How many sizes there are.
    pub(super) const SIZES: usize = 5;

    /// The least of the sizes that has so many bytes; the largest if none has.
    pub(super) fn of(bytes: u64) -> Self {
        let fits = |doubled: &u8| STACK_BYTES << doubled >= bytes;
        Self { doubled: (0..Self::DOUBLED_MAX).find(fits).unwrap_or(Self::DOUBLED_MAX) }
    }

    pub(super) fn bytes(self) -> u64 {
        STACK_BYTES << self.doubled
    }

    /// Which of the sizes it is.
    pub(super) fn at(self) -> usize {
        usize::from(self.doubled)
    }

    /// Slots that an instance with it takes.
    pub(super) fn slots(self) -> u32 {
        let more = (ENTRIES * (self.bytes() - STACK_BYTES)).div_ceil(STACK_SLOT_BYTES);
        u32::try_from(more).unwrap_or(u32::MAX).saturating_add(1)
    }
}

/// What the machine can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) instances: u32,
    pub(super) memory_bytes: u64,
    /// Actors whose code is mapped.
    pub(super) mapped: u32,
}

impl Size {
    /// Of an engine whose instances have a larger call stack.
    pub(super) fn with(self, stack: Stack) -> Self {
        Self { instances: (self.instances / stack.slots()).max(1), ..self }
    }

    pub(super) fn of(config: &Config) -> Self {
        let maps = read_number("/proc/sys/vm/max_map_count").unwrap_or(MAPS_DEFAULT);
        size(config.memory_bytes, config.instances_max, maps, machine_memory_bytes())
    }
}

/// Half of the mappings are for instances, the rest for loaded code and everything else.
fn size(memory_bytes: u64, instances_max: u32, maps: u64, machine_bytes: Option<u64>) -> Size {
    let by_maps = u32::try_from(maps / 2 / MAPS_PER_INSTANCE).unwrap_or(u32::MAX);
    let machine_bytes = machine_bytes.unwrap_or(u64::MAX);
    let memory_bytes = match memory_bytes {
        0 => (machine_bytes / 4 * 3).min(machine_bytes.saturating_sub(HOST_BYTES)).max(machine_bytes / 4),
        asked => asked.min(machine_bytes),
    };
    let by_memory = u32::try_from(memory_bytes / INSTANCE_BYTES).unwrap_or(u32::MAX);
    let mapped = memory_bytes / MAPPED_SHARE / MAPPED_BYTES;
    let mapped = mapped.min(maps / 4 / MAPS_PER_MAPPED).clamp(MAPPED.0, MAPPED.1);
    let mapped = u32::try_from(mapped).unwrap_or(u32::MAX);
    Size { instances: instances_max.min(by_maps).min(by_memory).max(1), memory_bytes, mapped }
}

/// Memory that this process may use: what the machine has, or the least that a control group of it may have.
pub fn machine_memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?.split_whitespace().next()?.parse::<u64>().ok()?;
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let files = cgroup::limit_files(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"));
    let limits = files.iter().filter_map(read_number);
    Some(limits.chain([kib.saturating_mul(1024)]).min().expect("there is one at least"))
}

fn read_number(path: impl AsRef<Path>) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The one place where wasmtime is configured. `pool` is left out on machines that can not reserve the address space.
pub(super) fn wasmtime_config(pool: Option<Size>, kind: Kind, stack: Stack) -> wasmtime::Config {
    let [stack_bytes, fiber_bytes] = [1, ENTRIES].map(|n| usize::try_from(n * stack.bytes()).unwrap_or(usize::MAX));
    let mut config = wasmtime::Config::new();
    config
        .strategy(Strategy::Cranelift)
        .cranelift_opt_level(OptLevel::Speed)
        .wasm_component_model(true)
        // Nobody's toolchain needs it, and each access of such a memory is checked by more code.
        .wasm_memory64(false)
        // The same answers on every machine.
        .relaxed_simd_deterministic(true)
        // Calls are about three times cheaper without the tables of 0.3.
        .concurrency_support(kind == Kind::Later)
        .wasm_component_model_async(kind == Kind::Later)
        .epoch_interruption(true)
        .max_wasm_stack(stack_bytes)
        .async_stack_size(fiber_bytes.saturating_add(HOST_STACK_BYTES))
        // What was used of a larger one would stay resident, in each pool that there is.
        .async_stack_zeroing(stack != Stack::USUAL)
        .memory_init_cow(true)
        // On a small machine a compilation on all cores would stand in the way of what is being served.
        .parallel_compilation(std::thread::available_parallelism().is_ok_and(|n| n.get() > 2))
        .wasm_backtrace_max_frames(NonZeroUsize::new(BACKTRACE_FRAMES_MAX));
    if let Some(size) = pool {
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pooling(size, stack)));
    }
    config
}

fn pooling(size: Size, stack: Stack) -> PoolingAllocationConfig {
    let n = size.instances;
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(n.saturating_mul(2))
        // These are only counted; memories and tables have a place each.
        .total_core_instances(n.saturating_mul(CORE_INSTANCES_MAX))
        .total_memories(n.saturating_mul(MEMORIES_PER_SLOT).max(MEMORIES_MAX))
        .total_tables(n.saturating_mul(TABLES_PER_SLOT).max(TABLES_MAX))
        .total_stacks(n.max(STACKS_MIN))
        .async_stack_keep_resident(STACK_KEEP_BYTES)
        .max_core_instances_per_component(CORE_INSTANCES_MAX)
        .max_memories_per_component(MEMORIES_MAX)
        .max_tables_per_component(TABLES_MAX)
        .max_memories_per_module(MEMORIES_MAX)
        .max_tables_per_module(TABLES_MAX)
        .table_elements(TABLE_ELEMENTS_MAX)
        .max_unused_warm_slots(if stack == Stack::USUAL { n.min(256) } else { 0 });
    if PoolingAllocationConfig::is_pagemap_scan_available() {
        // Without the scan, what is kept has to be cleared byte by byte, which costs more than it saves.
        pool.pagemap_scan(Enabled::Yes)
            .linear_memory_keep_resident(KEEP_RESIDENT_BYTES)
            .table_keep_resident(KEEP_RESIDENT_BYTES);
    }
    pool
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_stay_below_the_mappings_and_memory_below_the_machine() {
        assert_eq!(
            size(0, 10_000, 65_530, Some(8 << 30)),
            Size { instances: 3276, memory_bytes: 6 << 30, mapped: 512 }
        );
        assert_eq!(
            size(1 << 30, 100, 65_530, Some(8 << 30)),
            Size { instances: 100, memory_bytes: 1 << 30, mapped: 512 }
        );
        assert_eq!(size(0, 1_000, 65_530, Some(64 << 20)), Size { instances: 24, memory_bytes: 24 << 20, mapped: 16 });
        assert_eq!(size(0, 1_000, 65_530, Some(256 << 20)).memory_bytes, 192 << 20);
        assert_eq!(size(0, 1_000, 65_530, Some(32 << 20)).memory_bytes, 8 << 20);
        assert_eq!(size(16 << 30, 0, 1, Some(8 << 30)), Size { instances: 1, memory_bytes: 8 << 30, mapped: 16 });
    }

    #[test]
    fn call_stacks_have_few_sizes_and_count_as_what_they_may_take() {
        let of = |bytes| (Stack::of(bytes).bytes() >> 10, Stack::of(bytes).slots(), Stack::of(bytes).at());
        assert_eq!(of(0), (512, 1, 0));
        assert_eq!(of(STACK_BYTES), (512, 1, 0));
        assert_eq!(of(STACK_BYTES + 1), (1024, 2, 1));
        assert_eq!(of(2 << 20), (2048, 4, 2));
        assert_eq!(of(3 << 20), (4096, 8, 3));
        assert_eq!(of(8 << 20), (8192, 16, 4));
        assert_eq!(of(u64::MAX), (8192, 16, Stack::SIZES - 1));
        let size = Size { instances: 100, memory_bytes: 1 << 30, mapped: 16 };
        assert_eq!(size.with(Stack::USUAL), size);
        assert_eq!(size.with(Stack::of(8 << 20)).instances, 6);
        assert_eq!(Size { instances: 4, ..size }.with(Stack::of(8 << 20)).instances, 1);
    }

    /// A host that has to do without the pool still loads what it compiled with it.
    #[test]
    fn code_fits_with_and_without_the_pool() {
        use std::hash::{DefaultHasher, Hash as _, Hasher as _};
        let hash = |pool, kind, stack| {
            let engine = wasmtime::Engine::new(&wasmtime_config(pool, kind, stack)).unwrap();
            let mut hasher = DefaultHasher::new();
            engine.precompile_compatibility_hash().hash(&mut hasher);
            hasher.finish()
        };
        let small = Size { instances: 4, memory_bytes: 1 << 20, mapped: 16 };
        for kind in [Kind::Plain, Kind::Later] {
            let usual = hash(None, kind, Stack::USUAL);
            assert_eq!(usual, hash(Some(small), kind, Stack::USUAL));
            assert_eq!(usual, hash(None, kind, Stack::of(u64::MAX)), "whatever its call stack");
        }
        let [plain, later] = [Kind::Plain, Kind::Later].map(|kind| hash(None, kind, Stack::USUAL));
        assert_ne!(plain, later, "one engine would load the other's code");
    }
}
