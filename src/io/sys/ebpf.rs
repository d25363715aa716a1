// SPDX-License-Identifier: MIT OR Apache-2.0
//! eBPF: programs by which the kernel spreads frames over the queues of a TAP, and datagrams over
//! the sockets of a port; and the memory of such programs.

use std::ffi::c_char;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

use super::check;
use super::faults::{self, Call};

// The commands of `bpf(2)`.
const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const PROG_LOAD: libc::c_long = 5;
/// A map with a hash table.
const HASH: u32 = 1;
/// A map whose keys are positions.
const ARRAY: u32 = 2;
/// Lets this process read an array in place.
const MAPPABLE: u32 = 1 << 10;
/// Marks the number in an instruction as a descriptor of a map.
const IS_MAP: u8 = 1;
/// Marks it as a descriptor of an array whose first value is meant.
const IS_FIRST_VALUE: u8 = 2;
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

/// As [`skip_if_less`], but with the number in another register.
pub(in crate::io) const fn skip_if_below(register: u8, other: u8, count: usize) -> Instruction {
    Instruction::new(0xad, register, other, count as i16, 0)
}

pub(in crate::io) const fn skip_if_more(register: u8, value: u32, count: usize) -> Instruction {
    Instruction::new(0x25, register, 0, count as i16, value)
}

pub(in crate::io) const fn skip_if_same(register: u8, other: u8, count: usize) -> Instruction {
    Instruction::new(0x1d, register, other, count as i16, 0)
}

pub(in crate::io) const fn remainder(register: u8, divisor: u32) -> Instruction {
    Instruction::new(0x97, register, 0, 0, divisor)
}

/// Loads 64 bits, `offset` bytes behind where `from` points.
pub(in crate::io) const fn load(register: u8, from: u8, offset: i16) -> Instruction {
    Instruction::new(0x79, register, from, offset, 0)
}

/// Stores 64 bits, `offset` bytes behind where `at` points.
pub(in crate::io) const fn store(at: u8, offset: i16, register: u8) -> Instruction {
    Instruction::new(0x7b, at, register, offset, 0)
}

/// The same for the low 32 bits.
pub(in crate::io) const fn store_word(at: u8, offset: i16, register: u8) -> Instruction {
    Instruction::new(0x63, at, register, offset, 0)
}

/// Adds the register to the 64 bits there, whatever other cores do meanwhile.
pub(in crate::io) const fn add_to(at: u8, offset: i16, register: u8) -> Instruction {
    Instruction::new(0xdb, at, register, offset, 0)
}

/// Loads the length of the frame at which register 1 points when the program begins.
pub(in crate::io) const fn load_length(register: u8, frame: u8) -> Instruction {
    Instruction::new(0x61, register, frame, 0, 0)
}

/// Looks up in the map of register 1 the key at which register 2 points. Register 0 points to the
/// value, or is 0; registers 1 to 5 are lost.
pub(in crate::io) const fn look_up() -> Instruction {
    Instruction::new(0x85, 0, 0, 0, 1)
}

/// The monotonic clock in nanoseconds, in register 0; registers 1 to 5 are lost.
pub(in crate::io) const fn read_clock() -> Instruction {
    Instruction::new(0x85, 0, 0, 0, 5)
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
pub(crate) fn load_program(program: &[Instruction]) -> io::Result<OwnedFd> {
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

/// A map with keys of 32 bits.
fn create_map(map_type: u32, value_bytes: usize, capacity: u32, flags: u32) -> io::Result<OwnedFd> {
    faults::before(Call::LoadProgram, 1)?;
    let request = CreateRequest {
        map_type,
        key_bytes: size_of::<u32>() as u32,
        value_bytes: value_bytes as u32,
        capacity,
        flags,
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
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts a map into a register, for a program that keeps it from then on.
fn load_map(map: &OwnedFd, register: u8, marked_as: u8) -> [Instruction; 2] {
    let fd = map.as_raw_fd().cast_unsigned();
    [
        Instruction::new(0x18, register, marked_as, 0, fd),
        Instruction::new(0, 0, 0, 0, 0),
    ]
}

impl Set {
    /// An empty set with room for this many numbers.
    pub(in crate::io) fn new(capacity: u32) -> io::Result<Self> {
        create_map(HASH, size_of::<u32>(), capacity, 0).map(Self)
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

    /// Puts the set into a register.
    pub(in crate::io) fn load_into(&self, register: u8) -> [Instruction; 2] {
        load_map(&self.0, register, IS_MAP)
    }
}

/// Values of `N` times 64 bits in the kernel, zero at first, for a program's own use.
#[derive(Debug)]
pub(in crate::io) struct Array<const N: usize>(OwnedFd);

impl<const N: usize> Array<N> {
    pub(in crate::io) fn new(capacity: u32) -> io::Result<Self> {
        create_map(ARRAY, N * size_of::<u64>(), capacity, 0).map(Self)
    }

    /// Puts the array into a register; the keys are positions.
    pub(in crate::io) fn load_into(&self, register: u8) -> [Instruction; 2] {
        load_map(&self.0, register, IS_MAP)
    }
}

/// `N` numbers of 64 bits, zero at first, that a program counts and this process reads.
#[derive(Debug)]
pub(in crate::io) struct Counters<const N: usize> {
    map: OwnedFd,
    numbers: NonNull<[AtomicU64; N]>,
}

// SAFETY: the numbers are shared memory that lives as long as this value, and are read as atomics.
unsafe impl<const N: usize> Send for Counters<N> {}
// SAFETY: as for `Send`.
unsafe impl<const N: usize> Sync for Counters<N> {}

impl<const N: usize> Counters<N> {
    /// # Errors
    /// Also from kernels before 5.5, which let no process read an array in place.
    pub(in crate::io) fn new() -> io::Result<Self> {
        let bytes = N * size_of::<u64>();
        let map = create_map(ARRAY, bytes, 1, MAPPABLE)?;
        // SAFETY: a new mapping at a place of the kernel's choice; the kernel checks its length.
        let at = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                libc::PROT_READ,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let numbers = NonNull::new(at.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { map, numbers })
    }

    /// Makes a register point to the first number.
    pub(in crate::io) fn load_into(&self, register: u8) -> [Instruction; 2] {
        load_map(&self.map, register, IS_FIRST_VALUE)
    }

    /// The number in this position. What a core wrote before it counted is seen by those who see
    /// the count.
    pub(in crate::io) fn read(&self, place: usize) -> u64 {
        // SAFETY: the mapping is aligned to a page, holds `N` numbers, and lives as long as `self`;
        // this process never writes there, and the kernel writes whole numbers.
        let numbers = unsafe { self.numbers.as_ref() };
        numbers[place].load(Ordering::Acquire)
    }
}

impl<const N: usize> Drop for Counters<N> {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, which nobody else has; no reference to it is left.
        let _ = unsafe { libc::munmap(self.numbers.as_ptr().cast(), N * size_of::<u64>()) };
    }
}

/// What `program` returns for this frame.
#[cfg(test)]
pub(in crate::io) fn run(program: BorrowedFd<'_>, frame: &[u8]) -> io::Result<u32> {
    const PROG_TEST_RUN: libc::c_long = 10;
    /// As PROG_TEST_RUN reads it, and writes it in part.
    #[repr(C)]
    struct RunRequest {
        program: u32,
        result: u32,
        bytes: u32,
        bytes_out: u32,
        input: u64,
        output: u64,
        repeat: u32,
        duration: u32,
    }
    // The kernel hands over what follows an Ethernet header.
    let input = [&[0; 14], frame].concat();
    let mut request = RunRequest {
        program: program.as_raw_fd().cast_unsigned(),
        result: 0,
        bytes: input.len() as u32,
        bytes_out: 0,
        input: input.as_ptr() as u64,
        output: 0,
        repeat: 1,
        duration: 0,
    };
    // SAFETY: the request and its size agree; it points to `bytes` bytes, which the kernel reads.
    let status = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_TEST_RUN,
            &raw mut request,
            size_of::<RunRequest>(),
        )
    };
    check(status as libc::c_int).map(|_| request.result)
}
