-- For prometheus-node-exporter-lua: what the daemon's status says, over ubus.

-- Not to be missed: the exporter does not start if a collector cannot be loaded (libubus-lua).
local found, ubus = pcall(require, "ubus")

-- Of each upstream: key, type.
local UPSTREAM = {
  { "flows", "gauge" }, { "ms_connect", "gauge" }, { "ms_last", "gauge" }, { "attempts", "counter" },
  { "opened", "counter" }, { "failed", "counter" }, { "refused_403", "counter" }, { "refused_407", "counter" },
  { "refused_4xx", "counter" }, { "refused_5xx", "counter" }, { "refused_other", "counter" },
}

local function scrape()
  local connection = found and ubus.connect()
  local status = connection and connection:call("tcp-over-http", "status", {})
  if connection then connection:close() end
  local running = status and status.uptime
  metric("tcp_over_http_up", "gauge", nil, running and 1 or 0)
  if not running then return end

  metric("tcp_over_http_uptime_seconds", "gauge", nil, status.uptime)
  local flows = metric("tcp_over_http_flows", "gauge")
  for _, state in ipairs({ "held", "opening", "live", "closing" }) do
    flows({ state = state }, status.flows[state])
  end
  metric("tcp_over_http_flows_opened_total", "counter", nil, status.flows.opened)
  metric("tcp_over_http_flows_refused_total", "counter", nil, status.flows.refused)
  local bytes = metric("tcp_over_http_bytes_total", "counter")
  bytes({ direction = "up" }, status.bytes.up)
  bytes({ direction = "down" }, status.bytes.down)
  local dropped = metric("tcp_over_http_dropped_packets_total", "counter")
  for reason, count in pairs(status.dropped) do
    dropped({ reason = reason }, count)
  end

  local state = metric("tcp_over_http_upstream_ok", "gauge")
  local moved = metric("tcp_over_http_upstream_bytes_total", "counter")
  for _, upstream in ipairs(status.upstreams) do
    state({ upstream = upstream.name }, upstream.state == "ok" and 1 or 0)
    moved({ upstream = upstream.name, direction = "up" }, upstream.up)
    moved({ upstream = upstream.name, direction = "down" }, upstream.down)
  end
  for _, field in ipairs(UPSTREAM) do
    local key, kind = field[1], field[2]
    local one = metric("tcp_over_http_upstream_" .. key .. (kind == "counter" and "_total" or ""), kind)
    for _, upstream in ipairs(status.upstreams) do
      one({ upstream = upstream.name }, upstream[key])
    end
  end
end

return { scrape = scrape }
