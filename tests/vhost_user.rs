//! The vhost-user transport, its server in a thread of this process and its front-ends in others: every feature of the protocol, under
//! load.

#[path = "vhost_user/card.rs"]
mod card;
#[path = "vhost_user/cut.rs"]
#[allow(dead_code, reason = "each test uses what it needs")]
mod cut;
#[path = "vhost_user/enabled.rs"]
mod enabled;
#[path = "vhost_user/exercise.rs"]
mod exercise;
#[path = "vhost_user/frames.rs"]
mod frames;
#[path = "vhost_user/inflight.rs"]
mod inflight;
#[path = "vhost_user/life.rs"]
mod life;
#[path = "vhost_user/lives.rs"]
mod lives;
#[path = "vhost_user/log.rs"]
mod log;
#[path = "vhost_user/mmio.rs"]
mod mmio;
#[path = "vhost_user/net.rs"]
mod net;
#[path = "vhost_user/order.rs"]
mod order;
#[path = "vhost_user/polling.rs"]
mod polling;
#[path = "vhost_user/protocol.rs"]
mod protocol;
#[path = "vhost_user/raw.rs"]
#[allow(dead_code, reason = "each test uses what it needs")]
mod raw;
#[path = "vhost_user/registers.rs"]
#[allow(dead_code, reason = "each test uses what it needs")]
mod registers;
#[path = "vhost_user/rig.rs"]
#[allow(dead_code, reason = "each test uses what it needs")]
mod rig;
#[path = "vhost_user/rings.rs"]
mod rings;
#[path = "vhost_user/victim.rs"]
#[allow(dead_code, reason = "each test uses what it needs")]
mod victim;
