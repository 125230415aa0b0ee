//! What is measured.

/// Figures that are measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    /// Requests on connections that stay open.
    RoundTrip,
    /// Connect, request, close.
    Connect,
    /// One stream.
    Bulk,
    /// Memory of a proxy.
    Memory,
    /// Start and stop.
    Lifecycle,
    /// With clients that do not block, past TCP and by TCP.
    FastPath,
}

impl Group {
    /// All of them.
    pub(super) const ALL: [Self; 6] =
        [Self::RoundTrip, Self::Connect, Self::Bulk, Self::Memory, Self::Lifecycle, Self::FastPath];

    /// Its name in arguments.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::RoundTrip => "round-trip",
            Self::Connect => "connect",
            Self::Bulk => "bulk",
            Self::Memory => "memory",
            Self::Lifecycle => "lifecycle",
            Self::FastPath => "fastpath",
        }
    }
}

macro_rules! figures {
    ($($name:ident = ($key:literal, $label:literal, $unit:literal),)*) => {
        /// One figure.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(super) enum Figure { $(#[doc = $label] $name,)* }

        impl Figure {
            /// All of them, in the order of the table.
            pub(super) const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Its name in files.
            pub(super) fn key(self) -> &'static str {
                match self { $(Self::$name => $key,)* }
            }

            /// Its name in the table.
            pub(super) fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }

            /// Its unit.
            pub(super) fn unit(self) -> &'static str {
                match self { $(Self::$name => $unit,)* }
            }
        }
    };
}

figures! {
    RoundTrip1P50 = ("round_trip_1_p50", "128 B there and back, 1 connection, p50", "µs"),
    RoundTrip1P99 = ("round_trip_1_p99", "128 B there and back, 1 connection, p99", "µs"),
    RoundTrip1Cpu = ("round_trip_1_cpu", "128 B there and back, 1 connection, CPU of the proxies", "µs/op"),
    RoundTrip1CpuAll = ("round_trip_1_cpu_all", "128 B there and back, 1 connection, CPU of both pods", "µs/op"),
    RoundTrip64P50 = ("round_trip_64_p50", "128 B there and back, 64 connections, p50", "µs"),
    RoundTrip64P99 = ("round_trip_64_p99", "128 B there and back, 64 connections, p99", "µs"),
    RoundTrip64Rate = ("round_trip_64_rate", "128 B there and back, 64 connections, rate", "op/s"),
    RoundTrip64Cpu = ("round_trip_64_cpu", "128 B there and back, 64 connections, CPU of the proxies", "µs/op"),
    RoundTrip64CpuAll = ("round_trip_64_cpu_all", "128 B there and back, 64 connections, CPU of both pods", "µs/op"),
    RoundTrip1000P50 = ("round_trip_1000_p50", "128 B there and back, 1000 connections, p50", "µs"),
    RoundTrip1000P99 = ("round_trip_1000_p99", "128 B there and back, 1000 connections, p99", "µs"),
    RoundTrip1000Rate = ("round_trip_1000_rate", "128 B there and back, 1000 connections, rate", "op/s"),
    RoundTrip1000Cpu = ("round_trip_1000_cpu", "128 B there and back, 1000 connections, CPU of the proxies", "µs/op"),
    ConnectP50 = ("connect_p50", "connect, 128 B there and back, close, p50", "µs"),
    ConnectP99 = ("connect_p99", "connect, 128 B there and back, close, p99", "µs"),
    ConnectRate = ("connect_rate", "connect, 128 B there and back, close, 8 clients, rate", "op/s"),
    ConnectCpu = ("connect_cpu", "connect, 128 B there and back, close, CPU of the proxies", "µs/op"),
    ConnectCpuAll = ("connect_cpu_all", "connect, 128 B there and back, close, CPU of both pods", "µs/op"),
    Handshakes = ("handshakes", "connections with a handshake each, per second of CPU of the proxies", "op/s"),
    BulkUp = ("bulk_up", "one stream to the server", "GB/s"),
    BulkUpCpu = ("bulk_up_cpu", "one stream to the server, CPU of the proxies", "s/GB"),
    BulkUpCpuAll = ("bulk_up_cpu_all", "one stream to the server, CPU of both pods", "s/GB"),
    BulkDown = ("bulk_down", "one stream from the server", "GB/s"),
    BulkDownCpu = ("bulk_down_cpu", "one stream from the server, CPU of the proxies", "s/GB"),
    BulkDownCpuAll = ("bulk_down_cpu_all", "one stream from the server, CPU of both pods", "s/GB"),
    Event64x1P50 = ("event_64x1_p50", "64 B there and back by event loops, 1 connection, p50", "µs"),
    Event64x1Cpu = ("event_64x1_cpu", "64 B there and back by event loops, 1 connection, CPU of the proxies", "µs/op"),
    Event64x1CpuAll = ("event_64x1_cpu_all", "64 B there and back by event loops, 1 connection, CPU of both pods", "µs/op"),
    Event64x1Past = ("event_64x1_past", "64 B there and back by event loops, 1 connection, messages past TCP", "/op"),
    Event4096x1P50 = ("event_4096x1_p50", "4 KiB there and back by event loops, 1 connection, p50", "µs"),
    Event4096x1Cpu = ("event_4096x1_cpu", "4 KiB there and back by event loops, 1 connection, CPU of the proxies", "µs/op"),
    Event4096x1CpuAll = ("event_4096x1_cpu_all", "4 KiB there and back by event loops, 1 connection, CPU of both pods", "µs/op"),
    Event4096x1Past = ("event_4096x1_past", "4 KiB there and back by event loops, 1 connection, messages past TCP", "/op"),
    Event65536x1P50 = ("event_65536x1_p50", "64 KiB there and back by event loops, 1 connection, p50", "µs"),
    Event65536x1Cpu = ("event_65536x1_cpu", "64 KiB there and back by event loops, 1 connection, CPU of the proxies", "µs/op"),
    Event65536x1CpuAll = ("event_65536x1_cpu_all", "64 KiB there and back by event loops, 1 connection, CPU of both pods", "µs/op"),
    Event65536x1Past = ("event_65536x1_past", "64 KiB there and back by event loops, 1 connection, messages past TCP", "/op"),
    Event65536x64P50 = ("event_65536x64_p50", "64 KiB there and back by event loops, 64 connections, p50", "µs"),
    Event65536x64Cpu = ("event_65536x64_cpu", "64 KiB there and back by event loops, 64 connections, CPU of the proxies", "µs/op"),
    Event65536x64CpuAll = ("event_65536x64_cpu_all", "64 KiB there and back by event loops, 64 connections, CPU of both pods", "µs/op"),
    Event65536x64Past = ("event_65536x64_past", "64 KiB there and back by event loops, 64 connections, messages past TCP", "/op"),
    Event1024x64P50 = ("event_1024x64_p50", "1 KiB there and back by event loops, 64 connections, p50", "µs"),
    Event1024x64Cpu = ("event_1024x64_cpu", "1 KiB there and back by event loops, 64 connections, CPU of the proxies", "µs/op"),
    Event1024x64CpuAll = ("event_1024x64_cpu_all", "1 KiB there and back by event loops, 64 connections, CPU of both pods", "µs/op"),
    Event1024x64Past = ("event_1024x64_past", "1 KiB there and back by event loops, 64 connections, messages past TCP", "/op"),
    Event1024x1000P50 = ("event_1024x1000_p50", "1 KiB there and back by event loops, 1000 connections, p50", "µs"),
    Event1024x1000Cpu = ("event_1024x1000_cpu", "1 KiB there and back by event loops, 1000 connections, CPU of the proxies", "µs/op"),
    Event1024x1000CpuAll = ("event_1024x1000_cpu_all", "1 KiB there and back by event loops, 1000 connections, CPU of both pods", "µs/op"),
    Event1024x1000Past = ("event_1024x1000_past", "1 KiB there and back by event loops, 1000 connections, messages past TCP", "/op"),
    Turned64P50 = ("turned_64_p50", "64 B there and back, 1 connection that carried 64 KiB each before, p50", "µs"),
    Turned64Cpu = ("turned_64_cpu", "64 B there and back, 1 connection that carried 64 KiB each before, CPU of the proxies", "µs/op"),
    Turned64CpuAll = ("turned_64_cpu_all", "64 B there and back, 1 connection that carried 64 KiB each before, CPU of both pods", "µs/op"),
    Turned64Past = ("turned_64_past", "64 B there and back, 1 connection that carried 64 KiB each before, messages past TCP", "/op"),
    Turned4096P50 = ("turned_4096_p50", "4 KiB there and back, 1 connection that carried 64 KiB each before, p50", "µs"),
    Turned4096Cpu = ("turned_4096_cpu", "4 KiB there and back, 1 connection that carried 64 KiB each before, CPU of the proxies", "µs/op"),
    Turned4096CpuAll = ("turned_4096_cpu_all", "4 KiB there and back, 1 connection that carried 64 KiB each before, CPU of both pods", "µs/op"),
    Turned4096Past = ("turned_4096_past", "4 KiB there and back, 1 connection that carried 64 KiB each before, messages past TCP", "/op"),
    EventBulk = ("event_bulk", "one stream to the server by an event loop", "GB/s"),
    EventBulkCpuAll = ("event_bulk_cpu_all", "one stream to the server by an event loop, CPU of both pods", "s/GB"),
    EventBulkPast = ("event_bulk_past", "one stream to the server by an event loop, messages past TCP", "/GB"),
    EventBulkDown = ("event_bulk_down", "one stream from the server, an event loop", "GB/s"),
    EventBulkDownCpuAll = ("event_bulk_down_cpu_all", "one stream from the server, an event loop, CPU of both pods", "s/GB"),
    EventBulkDownPast = ("event_bulk_down_past", "one stream from the server, an event loop, messages past TCP", "/GB"),
    IdleAnonymous = ("idle_anonymous", "anonymous memory of a proxy, idle", "MB"),
    IdlePss = ("idle_pss", "proportional set size of a proxy, idle", "MB"),
    ConnectionAnonymous = ("connection_anonymous", "anonymous memory per idle connection (1000 of them)", "kB"),
    ConnectionAnonymousBoth =
        ("connection_anonymous_both", "anonymous memory of all proxies per idle connection (1000 of them)", "kB"),
    ConnectionPss = ("connection_pss", "proportional set size per idle connection (1000 of them)", "kB"),
    Start = ("start", "process start to first captured byte", "ms"),
    Stop = ("stop", "SIGTERM to exit, no connection open, the application not waited for", "ms"),
    KillToDirect = ("kill_to_direct", "kill -9 to first byte that goes direct", "ms"),
}

impl Figure {
    /// Whether it says how long an operation takes, so that "added over direct" means something.
    pub(super) fn is_latency(self) -> bool {
        self.unit() == "µs"
    }
}
