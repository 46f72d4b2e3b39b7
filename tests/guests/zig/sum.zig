//! A program in Zig: it adds up the numbers that it is given, one a line, and says so. What is no number it tells on its
//! second output, and ends with code 2.

const std = @import("std");
const wasi = std.os.wasi;

const input_bytes_max = 64 * 1024;
var input: [input_bytes_max]u8 = undefined;

pub fn main() void {
    var lines = std.mem.tokenizeScalar(u8, readAll(), '\n');
    var sum: i64 = 0;
    var count: u32 = 0;
    while (lines.next()) |line| {
        const number = std.fmt.parseInt(i64, line, 10) catch {
            write(2, "no number: ");
            write(2, line);
            write(2, "\n");
            wasi.proc_exit(2);
        };
        sum += number;
        count += 1;
    }
    var text: [64]u8 = undefined;
    write(1, std.fmt.bufPrint(&text, "{d} of {d}\n", .{ sum, count }) catch unreachable);
}

fn readAll() []const u8 {
    var len: usize = 0;
    while (len < input.len) {
        var more: usize = 0;
        const into = [_]wasi.iovec_t{.{ .base = input[len..].ptr, .len = input.len - len }};
        if (wasi.fd_read(0, &into, into.len, &more) != .SUCCESS or more == 0) break;
        len += more;
    }
    return input[0..len];
}

fn write(fd: wasi.fd_t, text: []const u8) void {
    var left = text;
    while (left.len > 0) {
        var done: usize = 0;
        const from = [_]wasi.ciovec_t{.{ .base = left.ptr, .len = left.len }};
        if (wasi.fd_write(fd, &from, from.len, &done) != .SUCCESS) return;
        left = left[done..];
    }
}
