// SPDX-License-Identifier: MIT OR Apache-2.0
//! eBPF: programs by which the kernel spreads frames over the queues of a TAP, and datagrams over
//! the sockets of a port; and sets of numbers that such a program looks up.

use std::ffi::c_char;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::check;
use super::faults::{self, Call};

// The commands of `bpf(2)`.
const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const PROG_LOAD: libc::c_long = 5;
/// A map with a hash table.
const HASH: u32 = 1;
/// Marks the number in an instruction as a descriptor of a map.
const IS_MAP: u8 = 1;
/// A program that reads a frame.
const SOCKET_FILTER: u32 = 1;

/// One instruction: operation, registers, distance of a jump, number.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    /// `code` as in linux/bpf.h.
    pub(crate) const fn new(
        code: u8,
        destination: u8,
        source: u8,
        offset: i16,
        immediate: u32,
    ) -> Self {
        Self {
            code,
            registers: source << 4 | destination,
            offset,
            immediate: immediate as i32,
        }
    }
}

// The instructions of both programs. The numbers are those of 64-bit arithmetic and of jumps in
// linux/bpf.h.

pub(in crate::io) const fn set(register: u8, value: u32) -> Instruction {
    Instruction::new(0xb7, register, 0, 0, value)
}

pub(in crate::io) const fn copy(to: u8, from: u8) -> Instruction {
    Instruction::new(0xbf, to, from, 0, 0)
}

pub(in crate::io) const fn add(register: u8, value: u32) -> Instruction {
    Instruction::new(0x07, register, 0, 0, value)
}

pub(in crate::io) const fn add_register(register: u8, other: u8) -> Instruction {
    Instruction::new(0x0f, register, other, 0, 0)
}

pub(in crate::io) const fn and(register: u8, value: u32) -> Instruction {
    Instruction::new(0x57, register, 0, 0, value)
}

pub(in crate::io) const fn shift_left(register: u8, bits: u32) -> Instruction {
    Instruction::new(0x67, register, 0, 0, bits)
}

pub(in crate::io) const fn shift_right(register: u8, bits: u32) -> Instruction {
    Instruction::new(0x77, register, 0, 0, bits)
}

pub(in crate::io) const fn skip(count: usize) -> Instruction {
    Instruction::new(0x05, 0, 0, count as i16, 0)
}

pub(in crate::io) const fn skip_if(register: u8, value: u32, count: usize) -> Instruction {
    Instruction::new(0x15, register, 0, count as i16, value)
}

pub(in crate::io) const fn skip_unless(register: u8, value: u32, count: usize) -> Instruction {
    Instruction::new(0x55, register, 0, count as i16, value)
}

pub(in crate::io) const fn end() -> Instruction {
    Instruction::new(0x95, 0, 0, 0, 0)
}

/// Loads from the frame, `offset` bytes behind its beginning.
pub(in crate::io) const fn load_word_at(offset: u32) -> Instruction {
    Instruction::new(0x20, 0, 0, 0, offset)
}

pub(in crate::io) const fn skip_if_less(register: u8, value: u32, count: usize) -> Instruction {
    Instruction::new(0xa5, register, 0, count as i16, value)
}

/// The front of `union bpf_attr` as PROG_LOAD reads it; the kernel assumes zeroes for the rest.
#[repr(C)]
struct LoadRequest {
    program_type: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

/// Gives a program to the kernel, which checks it. It lives as long as its descriptor, and as long
/// as it is attached.
pub(crate) fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let count = faults::before(Call::LoadProgram, program.len())?;
    let license: *const c_char = c"Dual MIT/GPL".as_ptr();
    let request = LoadRequest {
        program_type: SOCKET_FILTER,
        count: u32::try_from(count).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: license as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
    };
    // SAFETY: the request and its size agree; it points to `count` instructions, which are laid out
    // as the kernel's, and to a string that ends with NUL. All of them live until the call returns,
    // and the kernel only reads them.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_LOAD,
            &raw const request,
            size_of::<LoadRequest>(),
        )
    };
    let fd = check(fd as libc::c_int)?;
    // SAFETY: `fd` was just opened and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes `program` choose the socket of each datagram, for all sockets that share the port of this
/// one, and replaces the program that did so before: see
/// [`attach_to_port`](super::bpf::attach_to_port).
pub(in crate::io) fn attach_to_port(
    socket: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
) -> io::Result<()> {
    faults::before(Call::AttachFilter, 1)?;
    let program = program.as_raw_fd();
    // SAFETY: the option takes an int, which lives until the call returns.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_EBPF,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    check(status).map(drop)
}

/// A set of numbers in the kernel.
#[derive(Debug)]
pub(in crate::io) struct Set(OwnedFd);

/// As MAP_CREATE reads it.
#[repr(C)]
struct CreateRequest {
    map_type: u32,
    key_bytes: u32,
    value_bytes: u32,
    capacity: u32,
    flags: u32,
}

/// As requests for one element read it.
#[repr(C)]
struct ElementRequest {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl Set {
    /// An empty set with room for this many numbers.
    pub(in crate::io) fn new(capacity: u32) -> io::Result<Self> {
        faults::before(Call::LoadProgram, 1)?;
        let request = CreateRequest {
            map_type: HASH,
            key_bytes: size_of::<u32>() as u32,
            value_bytes: size_of::<u32>() as u32,
            capacity,
            flags: 0,
        };
        // SAFETY: the request and its size agree, and it lives until the call returns.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                MAP_CREATE,
                &raw const request,
                size_of::<CreateRequest>(),
            )
        };
        let fd = check(fd as libc::c_int)?;
        // SAFETY: `fd` was just opened and has no other owner.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Adds a number; one that is there stays.
    pub(in crate::io) fn insert(&self, number: u32) -> io::Result<()> {
        self.change(MAP_UPDATE_ELEM, number)
    }

    /// Removes a number.
    pub(in crate::io) fn remove(&self, number: u32) -> io::Result<()> {
        self.change(MAP_DELETE_ELEM, number)
    }

    fn change(&self, what: libc::c_long, number: u32) -> io::Result<()> {
        let value = 0_u32;
        let request = ElementRequest {
            map: self.0.as_raw_fd().cast_unsigned(),
            padding: 0,
            key: (&raw const number) as u64,
            // The kernel refuses to remove a key if a value is given with it.
            value: match what {
                MAP_DELETE_ELEM => 0,
                _ => (&raw const value) as u64,
            },
            flags: 0,
        };
        // SAFETY: the request and its size agree; it points to a key, and to a value where the kernel reads one,
        // of the map's sizes. All of them live until the call returns, and the kernel only reads them.
        let status = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                what,
                &raw const request,
                size_of::<ElementRequest>(),
            )
        };
        check(status as libc::c_int).map(drop)
    }

    /// Puts the set into a register, for a program that must not outlive the set.
    pub(in crate::io) fn load_into(&self, register: u8) -> [Instruction; 2] {
        let fd = self.0.as_raw_fd().cast_unsigned();
        [
            Instruction::new(0x18, register, IS_MAP, 0, fd),
            Instruction::new(0, 0, 0, 0, 0),
        ]
    }
}
